"""The model of a DeepSeek-V2/V3-style `config.json`, as a `model` section of ours.

What would change the numbers and is not known here is refused by its name and value, so a key is
used, has the one value that this project computes with, is known to change nothing, or is empty.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from mla_lm.errors import UserError

SIZES = {
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "inter_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
}
LATENT = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
EXPERTS = {
    "moe_inter_dim": "moe_intermediate_size",
    "n_routed_experts": "n_routed_experts",
    "n_shared_experts": "n_shared_experts",
    "n_activated_experts": "num_experts_per_tok",
    "n_groups": "n_group",
    "topk_groups": "topk_group",
    "route_scale": "routed_scaling_factor",
    "norm_topk": "norm_topk_prob",
}
ONLY: dict[str, list[Any]] = {
    "hidden_act": ["silu"],
    "attention_bias": [False, None],
    "rope_interleave": [True],
}
ONLY_OF_GATES = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}
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
ROPE = ("rope_type", "type", "rope_theta")
ROPE_ONLY = {"partial_rotary_factor": 1, "truncate": True}
YARN = {
    "factor": None,
    "original_max_position_embeddings": None,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 0.0,
    "mscale_all_dim": 0.0,
}


def model_section(config: Mapping[str, Any], has_mtp: Callable[[int], bool]) -> dict[str, Any]:
    """The section, to be validated; `has_mtp(layer)` says whether the files hold an MTP layer.

    Raises UserError for what is missing or what this project does not compute.
    """
    _refuse_others(config)
    sizes = {ours: _number(config, theirs) for ours, theirs in SIZES.items()}
    n_layers, n_dense = _count(config, "num_hidden_layers"), _count(config, "first_k_dense_replace")
    depth = _count(config, "num_nextn_predict_layers", 0)
    found = next((k for k in range(depth) if not has_mtp(n_layers + k)), depth)
    if found < depth:
        print(f"num_nextn_predict_layers={depth}: the files hold {found}, the others are left out")
    dense = n_dense >= n_layers and not found
    ffn = {"kind": "dense"} if dense else _experts(config)
    return sizes | {
        "n_dense_layers": min(n_dense, n_layers),
        "tie_embeddings": bool(config.get("tie_word_embeddings")),
        "init_std": _number(config, "initializer_range", 0.02),
        "mtp_depth": found,
        "mtp_input": "post_norm",
        "attention": {"kind": "mla", **{key: _number(config, key) for key in LATENT}},
        "ffn": ffn,
        "rope": _rope(config),
    }


def _refuse(key: str, value: object, rule: str = "is not supported") -> NoReturn:
    raise UserError(f"config.json: {key}={str(value)[:80]}: {rule}")


def _refuse_others(config: Mapping[str, Any]) -> None:
    if "auto_map" in config:
        rule = "its code is never run; delete the key if transformers' own class is meant"
        _refuse("auto_map", config["auto_map"], rule)
    kind = config.get("model_type")
    if kind not in (*CLASSES,):
        _refuse("model_type", kind, f"must be {' or '.join(CLASSES)}")
    if config.get("architectures", [CLASSES[kind]]) != [CLASSES[kind]]:
        _refuse("architectures", config["architectures"], f"must be {CLASSES[kind]} for {kind}")
    for key, only in ONLY.items():
        if config.get(key, only[0]) not in only:
            _refuse(key, config[key])
    heads = config.get("num_attention_heads")
    if (kv_heads := config.get("num_key_value_heads") or heads) != heads:
        _refuse("num_key_value_heads", kv_heads, f"must be num_attention_heads={heads}")
    known = {*SIZES.values(), *LATENT, *EXPERTS.values(), *ONLY, *ONLY_OF_GATES}
    for key, value in config.items():
        if value and key not in known and key not in WITHOUT_EFFECT:
            _refuse(key, value)


def _number(config: Mapping[str, Any], key: str, default: float | None = None) -> Any:
    """A plain number; anything else could mean something to who composes the configuration."""
    value = config.get(key)
    value = default if value is None else value
    if value is None and key != "q_lora_rank":
        raise UserError(f"config.json: {key}: missing")
    if not isinstance(value, int | float | None) or (value is not None and not abs(value) < 2**53):
        _refuse(key, value, "must be a number")
    return value


def _count(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = _number(config, key, default)
    if type(value) is not int or value < 0:
        _refuse(key, value, "must be a count")
    return value


def _experts(config: Mapping[str, Any]) -> dict[str, Any]:
    if config["model_type"] == "deepseek_v2":
        _refuse("model_type", "deepseek_v2", "its gates are softmax; only V3's sigmoid is computed")
    for key, only in ONLY_OF_GATES.items():
        if config.get(key, only) != only:
            _refuse(key, config[key], f"only {only} is computed here")
    experts = {ours: _number(config, theirs) for ours, theirs in EXPERTS.items()}
    return {"kind": "moe", **experts, "execution": "auto", "force_balance": False}


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    for key in ("rope_scaling", "rope_parameters"):
        if not isinstance(config.get(key), dict | None):
            _refuse(key, config[key], "must be an object")
    given: dict[str, Any] = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = given.get("rope_type") or given.get("type") or "default"
    theta = _number({**config, **given}, "rope_theta")
    if kind not in ("default", "yarn"):
        _refuse("rope_parameters.rope_type", kind, "must be default or yarn")
    known = {*ROPE, *((*YARN, "attention_factor") if kind == "yarn" else ())}
    for key, value in given.items():
        if value is not None and key not in known and value != ROPE_ONLY.get(key):
            _refuse(f"rope_parameters.{key}", value)
    if kind == "default":
        return {"kind": "plain", "theta": theta}
    yarn = {key: _number(given, key, default) for key, default in YARN.items()}
    if negative := [key for key in yarn if yarn[key] < 0]:
        _refuse(f"rope_parameters.{negative[0]}", yarn[negative[0]], "must not be negative")
    amplitude, mscales = _number(given, "attention_factor", 0), ("mscale", "mscale_all_dim")
    return {
        "kind": "yarn",
        "theta": theta,
        "factor": yarn["factor"],
        "original_max_seq_len": yarn["original_max_position_embeddings"],
        "beta_fast": yarn["beta_fast"],
        "beta_slow": yarn["beta_slow"],
        "mscale": _mscale(amplitude, yarn["factor"], *(yarn[key] for key in mscales)),
        "mscale_all_dim": yarn["mscale_all_dim"],
    }


def _mscale(amplitude: float, factor: float, mscale: float, mscale_all_dim: float) -> float:
    """The mscale behind the amplitude of the tables; that is 0 where the class works it out."""
    log_factor = math.log(max(1.0, factor))

    def temperature(mscale: float) -> float:
        return 0.1 * mscale * log_factor + 1

    ours = temperature(mscale) / temperature(mscale_all_dim)
    if amplitude == 0:
        amplitude = ours if mscale and mscale_all_dim else temperature(1.0)
    if math.isclose(amplitude, ours, rel_tol=1e-12):
        return mscale
    if log_factor == 0:
        _refuse("rope_parameters.attention_factor", amplitude, "must be 1 for factor=1")
    return (amplitude * temperature(mscale_all_dim) - 1) / (0.1 * log_factor)
