"""Where each parameter is stored in the files of a Hugging Face checkpoint, in both directions.

On disk experts are separate matrices, and MTP module k is layer `n_layers + k - 1` with copies of
the embedding and the head. DeepSeek rotates adjacent pairs as we do; the classes for MHA, GQA and
MQA rotate halves, so there the rows of queries and keys are permuted.
"""

import re
from collections.abc import Iterator
from types import EllipsisType
from typing import NamedTuple

import torch
from torch import Tensor

from mla_lm.config import GroupedAttentionConfig, ModelConfig, MoEConfig

STEMS = {
    "attention_norm": "input_layernorm",
    "attention": "self_attn",
    "q_a_norm": "q_a_layernorm",
    "kv_a_proj": "kv_a_proj_with_mqa",
    "kv_a_norm": "kv_a_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn": "mlp",
    "router": "gate",
    "embed_norm": "enorm",
    "hidden_norm": "hnorm",
    "proj": "eh_proj",
    "norm": "shared_head.norm",  # of an MTP module
}
HEAD = "lm_head.weight"
ENDS = {  # copied into MTP layers: name, and name there
    "embed.weight": ("model.embed_tokens.weight", "embed_tokens.weight"),
    "lm_head.weight": (HEAD, "shared_head.head.weight"),
}
ROTATED = re.compile(r"attention\.[qk]_(proj|norm)\.weight")
Place = EllipsisType | int | tuple[int, slice] | Tensor


class Part(NamedTuple):
    """A tensor of the files: `ours[at]`, or a copy of another part."""

    name: str
    at: Place = ...
    copy: bool = False  # may be missing, must equal the original


def parts(name: str, cfg: ModelConfig) -> list[Part]:
    """The tensors of the files that make up our parameter or buffer `name`.

    A tied head is a part of "embed.weight".
    """
    if name == "norm.weight":
        return [Part("model.norm.weight")]
    if name in ENDS:
        tied = cfg.tie_embeddings and name == "embed.weight"
        head = [part._replace(copy=True) for part in _end("lm_head.weight", cfg)] if tied else []
        return [*_end(name, cfg), *head]
    match = re.fullmatch(r"(blocks|mtp)\.(\d+)\.(?:block\.)?(.+)", name)
    assert match is not None, name
    layer = int(match[2]) + (cfg.n_layers if match[1] == "mtp" else 0)
    return [Part(f"model.layers.{layer}.{key}", at) for key, at in _in_block(match[3], cfg)]


def _end(name: str, cfg: ModelConfig) -> list[Part]:
    main, copy = ENDS[name]
    mtp_layers = range(cfg.n_layers, cfg.n_layers + cfg.mtp_depth)
    return [Part(main), *(Part(f"model.layers.{i}.{copy}", copy=True) for i in mtp_layers)]


def _in_block(name: str, cfg: ModelConfig) -> Iterator[tuple[str, Place]]:
    if name.startswith("ffn.experts."):
        assert isinstance(cfg.ffn, MoEConfig)
        width = cfg.ffn.moe_inter_dim
        for expert in range(cfg.ffn.n_routed_experts):
            if name == "ffn.experts.gate_up_proj":
                yield f"mlp.experts.{expert}.gate_proj.weight", (expert, slice(width))
                yield f"mlp.experts.{expert}.up_proj.weight", (expert, slice(width, None))
            else:
                yield f"mlp.experts.{expert}.down_proj.weight", expert
        return
    at: Place = ...
    if isinstance(cfg.attention, GroupedAttentionConfig) and ROTATED.fullmatch(name):
        query, norm = name.startswith("attention.q_"), name.endswith("_norm.weight")
        heads = 1 if norm else cfg.n_heads if query else cfg.attention.n_kv_heads
        at = _halves(heads, cfg.attention)
    yield ".".join(STEMS.get(part, part) for part in name.split(".")), at


def _halves(n_heads: int, attention: GroupedAttentionConfig) -> Tensor:
    """Permutation of our rows (adjacent pairs) into the order of heads that rotate halves."""
    rope = torch.arange(attention.rope_head_dim).view(-1, 2).T.flatten()
    rest = torch.arange(attention.rope_head_dim, attention.head_dim)
    first = torch.arange(n_heads).unsqueeze(1) * attention.head_dim
    return (first + torch.cat((rope, rest))).flatten()
