"""`config.json` for the `transformers` class that computes exactly the same function as a model.

MLA is `DeepseekV3ForCausalLM`. MHA, GQA and MQA are `Glm4MoeForCausalLM`, or with a dense FFN and
RoPE on whole heads `LlamaForCausalLM` (`Qwen3ForCausalLM` with QK-norm). vLLM needs the keys of the
released DeepSeek-V3 as well. `config_from_hf.py` reads the same tables of names the other way.
"""

import math
from collections.abc import Mapping
from typing import Any

from mla_lm.config import GroupedAttentionConfig, MLAConfig, ModelConfig, MoEConfig, YarnConfig
from mla_lm.config.section import Section
from mla_lm.errors import UserError

MODEL_TYPES = {
    "DeepseekV3ForCausalLM": "deepseek_v3",
    "Glm4MoeForCausalLM": "glm4_moe",
    "LlamaForCausalLM": "llama",
    "Qwen3ForCausalLM": "qwen3",
}
SIZES = {  # our name: Hugging Face's
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "inter_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
}
LATENT = {key: key for key in MLAConfig.model_fields if key != "kind"}
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
GATE = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}
YARN = {
    "factor": "factor",
    "original_max_seq_len": "original_max_position_embeddings",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
}
MSCALES = {"mscale": "mscale", "mscale_all_dim": "mscale_all_dim"}


def class_for(cfg: ModelConfig) -> str:
    """The name of the class; UserError naming the key for what none of them computes."""
    name = _by_attention(cfg)
    moe = cfg.ffn
    if cfg.mtp_depth and cfg.mtp_input == "pre_norm":
        raise UserError("model.mtp_input=pre_norm: the released layout feeds the normed state")
    if isinstance(moe, MoEConfig):
        for key, least in (("n_routed_experts", 2), ("n_shared_experts", 1)):
            if (value := getattr(moe, key)) < least:
                raise UserError(f"model.ffn.{key}={value}: {name} needs at least {least}")
        if moe.force_balance:
            raise UserError(f"model.ffn.force_balance=true: {name} has a gate")
    elif cfg.mtp_depth:
        depth = cfg.mtp_depth
        raise UserError(f"model.mtp_depth={depth}: {name} has no MTP module with a dense FFN")
    return name


def _by_attention(cfg: ModelConfig) -> str:
    attention, rope = cfg.attention, cfg.rope
    if isinstance(attention, MLAConfig):
        return "DeepseekV3ForCausalLM"
    whole = attention.rope_head_dim == attention.head_dim
    if isinstance(rope, YarnConfig) and not whole and rope.temperature(rope.mscale_all_dim) != 1:
        raise UserError(
            f"model.rope.mscale_all_dim={rope.mscale_all_dim}: Glm4MoeForCausalLM has no YaRN "
            "softmax scale for partly rotated heads"
        )
    if cfg.ffn.kind == "dense" and whole and attention.qk_norm:
        return "Qwen3ForCausalLM"
    if cfg.ffn.kind == "dense" and whole and cfg.dim % cfg.n_heads == 0:  # Llama refuses others
        return "LlamaForCausalLM"
    return "Glm4MoeForCausalLM"


def config_dict(cfg: ModelConfig) -> dict[str, Any]:
    """`config.json`; UserError naming the key for what no class computes."""
    name = class_for(cfg)
    content = {
        "architectures": [name],
        "model_type": MODEL_TYPES[name],
        **_renamed(cfg, SIZES),
        "num_key_value_heads": cfg.n_heads,
        "rope_theta": cfg.rope.theta,
        "rope_parameters": _rope_parameters(cfg),
        "tie_word_embeddings": cfg.tie_embeddings,
        "initializer_range": cfg.init_std,
        "hidden_act": "silu",
        "attention_bias": False,
    }
    if isinstance(cfg.attention, MLAConfig):
        content |= {**_renamed(cfg.attention, LATENT), "rope_interleave": True}
    else:
        content |= {
            "num_key_value_heads": cfg.attention.n_kv_heads,
            "head_dim": cfg.attention.head_dim,
            "use_qk_norm": cfg.attention.qk_norm,
            "partial_rotary_factor": _rotated_share(cfg.attention),
        }
    if name in ("DeepseekV3ForCausalLM", "Glm4MoeForCausalLM"):
        moe = isinstance(cfg.ffn, MoEConfig)
        content |= {
            "num_nextn_predict_layers": cfg.mtp_depth,
            "first_k_dense_replace": cfg.n_dense_layers if moe else cfg.n_layers,
            "ep_size": 1,
            **GATE,
            **(_renamed(cfg.ffn, EXPERTS) if moe else {}),
        }
    return content


def _renamed(section: Section, names: Mapping[str, str]) -> dict[str, Any]:
    return {theirs: getattr(section, ours) for ours, theirs in names.items()}


def _rotated_share(attention: GroupedAttentionConfig) -> float:
    """The classes multiply the head width by this and round down, to get the rotated width."""
    share = attention.rope_head_dim / attention.head_dim
    exact = int(attention.head_dim * share) == attention.rope_head_dim
    return share if exact else math.nextafter(share, 1)


def _rope_parameters(cfg: ModelConfig) -> dict[str, Any]:
    rope = cfg.rope
    content: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.theta}
    if isinstance(cfg.attention, GroupedAttentionConfig):
        content["partial_rotary_factor"] = _rotated_share(cfg.attention)
    if not isinstance(rope, YarnConfig):
        return content
    content |= {"rope_type": "yarn", **_renamed(rope, YARN)}
    if isinstance(cfg.attention, GroupedAttentionConfig):  # scales the tables of queries and keys
        scale = rope.amplitude * rope.temperature(rope.mscale_all_dim)
        return content | {"attention_factor": scale}
    if not (rope.mscale and rope.mscale_all_dim):  # the class would fall back to its own amplitude
        content["attention_factor"] = rope.amplitude
    return content | _renamed(rope, MSCALES)
