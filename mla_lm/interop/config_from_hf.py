"""The `model` section for a DeepSeek-V2/V3-style `config.json`.

Every key is used, has the one value that this project computes with, has no effect on the numbers,
or is empty; anything else is refused by its name and value.
"""

import math
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from mla_lm.config import YarnConfig
from mla_lm.errors import UserError
from mla_lm.interop.config_to_hf import EXPERTS, GATE, LATENT, MSCALES, SIZES, YARN

ONLY = {"hidden_act": "silu", "attention_bias": False, "rope_interleave": True}
WITHOUT_EFFECT = {  # on what the model computes, or read below
    *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype"),
    *("_name_or_path", "use_cache", "initializer_range", "attention_dropout", "pretraining_tp"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "seq_aux", "aux_loss_alpha", "ep_size"),
    *("output_router_logits", "router_aux_loss_coef"),
    *("head_dim", "qk_head_dim", "num_key_value_heads", "tie_word_embeddings"),
    *("first_k_dense_replace", "num_nextn_predict_layers"),
    *("rope_theta", "rope_parameters", "rope_scaling"),
}
CLASSES = {"deepseek_v3": "DeepseekV3ForCausalLM", "deepseek_v2": "DeepseekV2ForCausalLM"}
YARN_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 0.0, "mscale_all_dim": 0.0}
ROPE = {"rope_type", "type", "rope_theta", "attention_factor", *YARN.values(), *MSCALES}
ROPE_ONLY = {"partial_rotary_factor": 1, "truncate": True}


def model_section(config: Mapping[str, Any], tensors: Iterable[str]) -> dict[str, Any]:
    """The section, to be validated; the names of the `tensors` tell which MTP layers there are.

    Raises UserError for what is missing or what this project does not compute.
    """
    _refuse_unknown(config)
    n_layers = _number(config, "num_hidden_layers")
    n_dense = _number(config, "first_k_dense_replace")
    depth = _number(config, "num_nextn_predict_layers", 0)
    layers = {re.sub(r"^model\.layers\.(\d+)\..*", r"\1", name) for name in tensors}
    found = next((k for k in range(depth) if str(n_layers + k) not in layers), depth)
    if found < depth:
        held = f"the files hold {found}; the others are left out"
        print(f"warning: num_nextn_predict_layers={depth}: {held}", file=sys.stderr)
    dense = n_dense >= n_layers and not found
    return _numbers(config, SIZES) | {
        "n_dense_layers": min(n_dense, n_layers),
        "tie_embeddings": bool(config.get("tie_word_embeddings")),
        "init_std": _number(config, "initializer_range", 0.02),
        "mtp_depth": found,
        "mtp_input": "post_norm",
        "attention": {"kind": "mla", **_numbers(config, LATENT)},
        "ffn": {"kind": "dense"} if dense else _experts(config),
        "rope": _rope(config),
    }


def _refuse(key: str, value: object, rule: str = "is not supported") -> NoReturn:
    raise UserError(f"config.json: {key}={str(value)[:80]}: {rule}")


def _refuse_unknown(config: Mapping[str, Any]) -> None:
    if "auto_map" in config:
        rule = "its code is never run; delete the key if transformers' own class is meant"
        _refuse("auto_map", config["auto_map"], rule)
    kind = config.get("model_type")
    if kind not in CLASSES:
        _refuse("model_type", kind, f"must be {' or '.join(CLASSES)}")
    if config.get("architectures", [CLASSES[kind]]) != [CLASSES[kind]]:
        _refuse("architectures", config["architectures"], f"must be {CLASSES[kind]} for {kind}")
    for key, only in ONLY.items():
        if (config.get(key, only) or False) != only:
            _refuse(key, config[key])
    heads = config.get("num_attention_heads")
    if (kv_heads := config.get("num_key_value_heads") or heads) != heads:
        _refuse("num_key_value_heads", kv_heads, f"must be num_attention_heads={heads}")
    known = {*SIZES.values(), *LATENT, *EXPERTS.values(), *ONLY, *GATE, *WITHOUT_EFFECT}
    for key, value in config.items():
        if value and key not in known:
            _refuse(key, value)


def _number(config: Mapping[str, Any], key: str, default: float | None = None) -> Any:
    """Its range is checked with the section."""
    value = default if config.get(key) is None else config[key]
    if value is None and key != "q_lora_rank":
        _refuse(key, value, "missing")
    if not isinstance(value, int | float | None):
        _refuse(key, value, "must be a number")
    return value


def _numbers(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {
        ours: _number(config, theirs, YARN_DEFAULTS.get(ours)) for ours, theirs in names.items()
    }


def _experts(config: Mapping[str, Any]) -> dict[str, Any]:
    if config["model_type"] == "deepseek_v2":
        _refuse("model_type", "deepseek_v2", "its gates are softmax; only V3's sigmoid is computed")
    for key, only in GATE.items():
        if config.get(key, only) != only:
            _refuse(key, config[key], f"only {only} is computed here")
    experts = _numbers(config, EXPERTS)
    return {"kind": "moe", **experts, "execution": "auto", "force_balance": False}


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in ("default", "yarn"):
        _refuse("rope_parameters.rope_type", kind, "must be default or yarn")
    for key, value in given.items():
        if value is not None and key not in ROPE and value != ROPE_ONLY.get(key):
            _refuse(f"rope_parameters.{key}", value)
    theta = _number({**config, **given}, "rope_theta")
    if kind == "default":
        return {"kind": "plain", "theta": theta}
    yarn = _numbers(given, YARN | MSCALES)
    amplitude = _number(given, "attention_factor", 0)
    stretched = YarnConfig.model_construct(**yarn | {"factor": max(1.0, yarn["factor"])})
    mscale = _mscale(stretched, amplitude)
    return {"kind": "yarn", "theta": theta, **yarn, "mscale": mscale}


def _mscale(yarn: YarnConfig, amplitude: float) -> float:
    """The mscale that gives the rotary tables this amplitude; 0: that which the class computes."""
    if amplitude == 0:
        amplitude = yarn.amplitude if yarn.mscale and yarn.mscale_all_dim else yarn.temperature(1.0)
    if math.isclose(amplitude, yarn.amplitude, rel_tol=1e-12):
        return yarn.mscale
    if yarn.factor == 1:
        _refuse("rope_parameters.attention_factor", amplitude, "must be 1 for factor=1")
    return (amplitude * yarn.temperature(yarn.mscale_all_dim) - 1) / (0.1 * math.log(yarn.factor))
