"""`config.json` for the `transformers` class that computes exactly what a model of ours does.

MLA is `DeepseekV3ForCausalLM`. MHA, GQA and MQA are `Glm4MoeForCausalLM`, or with a dense FFN and
heads rotated as a whole `LlamaForCausalLM` (`Qwen3ForCausalLM` with QK-norm). vLLM wants the keys
of the released DeepSeek-V3 besides those of the class.
"""

import math
from typing import Any

from mla_lm.config import (
    GroupedAttentionConfig,
    MLAConfig,
    ModelConfig,
    MoEConfig,
    YarnConfig,
)
from mla_lm.errors import UserError

MODEL_TYPES = {
    "DeepseekV3ForCausalLM": "deepseek_v3",
    "Glm4MoeForCausalLM": "glm4_moe",
    "LlamaForCausalLM": "llama",
    "Qwen3ForCausalLM": "qwen3",
}


def class_for(cfg: ModelConfig) -> str:
    """The name of the class; UserError, naming the key, for what none of them can run."""
    name = _fitting(cfg)
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
        raise UserError(
            f"model.mtp_depth={cfg.mtp_depth}: {name} has no MTP module with a dense FFN"
        )
    return name


def _fitting(cfg: ModelConfig) -> str:
    if isinstance(cfg.attention, MLAConfig):
        return "DeepseekV3ForCausalLM"
    whole = cfg.attention.rope_head_dim == cfg.attention.head_dim
    rope = cfg.rope
    if isinstance(rope, YarnConfig) and not whole and rope.temperature(rope.mscale_all_dim) != 1:
        raise UserError(
            f"model.rope.mscale_all_dim={rope.mscale_all_dim}: Glm4MoeForCausalLM sharpens no "
            "softmax of heads that are rotated in part"
        )
    if cfg.ffn.kind == "dense" and whole:
        return "Qwen3ForCausalLM" if cfg.attention.qk_norm else "LlamaForCausalLM"
    return "Glm4MoeForCausalLM"


def config_dict(cfg: ModelConfig) -> dict[str, Any]:
    """`config.json`; UserError, naming the key, for what no class can run."""
    name = class_for(cfg)
    attention = (
        _latent(cfg.attention) if isinstance(cfg.attention, MLAConfig) else _grouped(cfg.attention)
    )
    content = {
        "architectures": [name],
        "model_type": MODEL_TYPES[name],
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.dim,
        "intermediate_size": cfg.inter_dim,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_heads,
        "max_position_embeddings": cfg.max_seq_len,
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope.theta,
        "rope_parameters": _rope_parameters(cfg),
        "tie_word_embeddings": cfg.tie_embeddings,
        "initializer_range": cfg.init_std,
        "hidden_act": "silu",
        "attention_bias": False,
        **attention,
    }
    if name in ("DeepseekV3ForCausalLM", "Glm4MoeForCausalLM"):
        content |= _experts(cfg)
    return content


def _latent(mla: MLAConfig) -> dict[str, Any]:
    return {
        "q_lora_rank": mla.q_lora_rank,
        "kv_lora_rank": mla.kv_lora_rank,
        "qk_nope_head_dim": mla.qk_nope_head_dim,
        "qk_rope_head_dim": mla.qk_rope_head_dim,
        "v_head_dim": mla.v_head_dim,
        "rope_interleave": True,
    }


def _grouped(attention: GroupedAttentionConfig) -> dict[str, Any]:
    return {
        "num_key_value_heads": attention.n_kv_heads,
        "head_dim": attention.head_dim,
        "use_qk_norm": attention.qk_norm,
        "partial_rotary_factor": _rotated_share(attention),
    }


def _rotated_share(attention: GroupedAttentionConfig) -> float:
    """What the classes multiply the width of a head by, rounding down, to get the rotated part."""
    share = attention.rope_head_dim / attention.head_dim
    exact = int(attention.head_dim * share) == attention.rope_head_dim
    return share if exact else math.nextafter(share, 1)


def _experts(cfg: ModelConfig) -> dict[str, Any]:
    content = {
        "num_nextn_predict_layers": cfg.mtp_depth,
        "first_k_dense_replace": cfg.n_layers,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
        "ep_size": 1,
    }
    if isinstance(cfg.ffn, MoEConfig):
        moe = cfg.ffn
        content |= {
            "first_k_dense_replace": cfg.n_dense_layers,
            "moe_intermediate_size": moe.moe_inter_dim,
            "n_routed_experts": moe.n_routed_experts,
            "n_shared_experts": moe.n_shared_experts,
            "num_experts_per_tok": moe.n_activated_experts,
            "n_group": moe.n_groups,
            "topk_group": moe.topk_groups,
            "routed_scaling_factor": moe.route_scale,
            "norm_topk_prob": moe.norm_topk,
        }
    return content


def _rope_parameters(cfg: ModelConfig) -> dict[str, Any]:
    rope = cfg.rope
    content: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.theta}
    if isinstance(rope, YarnConfig):
        content |= {
            "rope_type": "yarn",
            "factor": rope.factor,
            "original_max_position_embeddings": rope.original_max_seq_len,
            "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow,
        }
    if not isinstance(cfg.attention, GroupedAttentionConfig):
        return content | (_mscales(rope) if isinstance(rope, YarnConfig) else {})
    if isinstance(rope, YarnConfig):  # on the tables alone: of both queries and keys
        content["attention_factor"] = rope.amplitude * rope.temperature(rope.mscale_all_dim)
    return content | {"partial_rotary_factor": _rotated_share(cfg.attention)}


def _mscales(rope: YarnConfig) -> dict[str, Any]:
    # Where an mscale is 0 the class falls back to an amplitude of its own.
    amplitude = {} if rope.mscale and rope.mscale_all_dim else {"attention_factor": rope.amplitude}
    return amplitude | {"mscale": rope.mscale, "mscale_all_dim": rope.mscale_all_dim}
