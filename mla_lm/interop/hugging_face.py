"""Our parameter names against the layout of the released DeepSeek-V3 checkpoints.

On disk experts are separate matrices and MTP module k is layer `n_layers + k - 1`. No permutation
is needed: rotary pairs are adjacent in both.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from mla_lm.config import MLAConfig, ModelConfig, MoEConfig, RopeConfig, YarnConfig
from mla_lm.errors import UserError

STEMS = {
    "attention_norm": "input_layernorm",
    "attention": "self_attn",
    "q_a_norm": "q_a_layernorm",
    "kv_a_proj": "kv_a_proj_with_mqa",
    "kv_a_norm": "kv_a_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn": "mlp",
    "router": "gate",
}
MTP_STEMS = {
    "embed_norm": "enorm",
    "hidden_norm": "hnorm",
    "proj": "eh_proj",
    "norm": "shared_head.norm",
}
OUTER = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}


def config_dict(cfg: ModelConfig) -> dict[str, Any]:
    """`config.json` of a `DeepseekV3ForCausalLM`; UserError for what that class cannot run."""
    mla, moe = cfg.attention, cfg.ffn
    if not isinstance(mla, MLAConfig):
        raise UserError(f"model.attention.kind={mla.kind}: DeepseekV3ForCausalLM has MLA only")
    if cfg.mtp_depth and cfg.mtp_input == "pre_norm":
        raise UserError("model.mtp_input=pre_norm: the released layout feeds the normed state")
    if isinstance(moe, MoEConfig):
        if moe.n_routed_experts == 1:
            raise UserError("model.ffn.n_routed_experts=1: DeepseekV3ForCausalLM needs two or more")
        if moe.n_shared_experts == 0:
            raise UserError(
                "model.ffn.n_shared_experts=0: DeepseekV3ForCausalLM needs at least one"
            )
        experts = {
            "moe_intermediate_size": moe.moe_inter_dim,
            "n_routed_experts": moe.n_routed_experts,
            "n_shared_experts": moe.n_shared_experts,
            "num_experts_per_tok": moe.n_activated_experts,
            "n_group": moe.n_groups,
            "topk_group": moe.topk_groups,
            "routed_scaling_factor": moe.route_scale,
            "norm_topk_prob": moe.norm_topk,
            "first_k_dense_replace": cfg.n_dense_layers,
        }
    elif cfg.mtp_depth:
        raise UserError("model.mtp_depth: DeepseekV3ForCausalLM has no MTP module with a dense FFN")
    else:
        experts = {"first_k_dense_replace": cfg.n_layers}
    return experts | {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.dim,
        "intermediate_size": cfg.inter_dim,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_heads,
        "q_lora_rank": mla.q_lora_rank,
        "kv_lora_rank": mla.kv_lora_rank,
        "qk_nope_head_dim": mla.qk_nope_head_dim,
        "qk_rope_head_dim": mla.qk_rope_head_dim,
        "v_head_dim": mla.v_head_dim,
        "num_nextn_predict_layers": cfg.mtp_depth,
        "max_position_embeddings": cfg.max_seq_len,
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope.theta,
        "rope_parameters": _rope_parameters(cfg.rope),
        "rope_interleave": True,
        "tie_word_embeddings": cfg.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
        "ep_size": 1,
    }


def _rope_parameters(rope: RopeConfig) -> dict[str, Any]:
    if not isinstance(rope, YarnConfig):
        return {"rope_type": "default", "rope_theta": rope.theta}
    # Where an mscale is 0 the class falls back to an amplitude of its own.
    amplitude = {} if rope.mscale and rope.mscale_all_dim else {"attention_factor": rope.amplitude}
    return amplitude | {
        "rope_type": "yarn",
        "rope_theta": rope.theta,
        "factor": rope.factor,
        "original_max_position_embeddings": rope.original_max_seq_len,
        "beta_fast": rope.beta_fast,
        "beta_slow": rope.beta_slow,
        "mscale": rope.mscale,
        "mscale_all_dim": rope.mscale_all_dim,
    }


def to_hugging_face(state: Mapping[str, Tensor], cfg: ModelConfig) -> dict[str, Tensor]:
    """A `Transformer`'s state dict in the released on-disk layout; shares memory with `state`."""
    exported: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "lm_head.weight" and cfg.tie_embeddings:
            continue
        exported |= _entries(name, tensor, cfg)
    for depth in range(cfg.mtp_depth):
        layer = f"model.layers.{cfg.n_layers + depth}"
        exported[f"{layer}.embed_tokens.weight"] = state["embed.weight"]
        exported[f"{layer}.shared_head.head.weight"] = state["lm_head.weight"]
    return exported


def _entries(name: str, tensor: Tensor, cfg: ModelConfig) -> dict[str, Tensor]:
    if name in OUTER:
        return {OUTER[name]: tensor}
    if match := re.fullmatch(r"mtp\.(\d+)\.(\w+)\.weight", name):
        layer = cfg.n_layers + int(match[1])
        return {f"model.layers.{layer}.{MTP_STEMS[match[2]]}.weight": tensor}
    match = re.fullmatch(r"(?:blocks\.(\d+)|mtp\.(\d+)\.block)\.(.+)", name)
    assert match is not None, name
    layer = int(match[1]) if match[1] else cfg.n_layers + int(match[2])
    return {f"model.layers.{layer}.{key}": part for key, part in _block_entries(match[3], tensor)}


def _block_entries(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if name == "ffn.experts.gate_up_proj":
        for expert, weight in enumerate(tensor):
            gate, up = weight.chunk(2)
            yield f"mlp.experts.{expert}.gate_proj.weight", gate
            yield f"mlp.experts.{expert}.up_proj.weight", up
    elif name == "ffn.experts.down_proj":
        for expert, weight in enumerate(tensor):
            yield f"mlp.experts.{expert}.down_proj.weight", weight
    else:
        yield ".".join(STEMS.get(part, part) for part in name.split(".")), tensor
