"""The network: attention, feed-forward layer, positions and sizes."""

import math
from typing import Annotated, Literal

from pydantic import Field

from mla_lm.config.section import Positive, Rules, Section, at_most

# No real model comes near: what a file of a stranger may ask for, before anything is allocated.
Width = Annotated[int, Field(gt=0, le=2**20)]
Depth = Annotated[int, Field(ge=0, le=10_000)]
Length = Annotated[int, Field(gt=0, le=2**24)]


class MLAConfig(Section):
    """Multi-head Latent Attention (arXiv 2405.04434, section 2.1)."""

    kind: Literal["mla"]
    q_lora_rank: Width | None
    kv_lora_rank: Width
    qk_nope_head_dim: Width
    qk_rope_head_dim: Width
    v_head_dim: Width

    def rules(self) -> Rules:
        yield "qk_rope_head_dim", self.qk_rope_head_dim % 2 == 0, "must be even"

    @property
    def rope_dim(self) -> int:
        """Width of the part of a head that is rotated."""
        return self.qk_rope_head_dim


class GroupedAttentionConfig(Section):
    """MHA, GQA or MQA: each of `n_kv_heads` heads serves `n_heads / n_kv_heads` query heads."""

    kind: Literal["mha", "gqa", "mqa"]
    n_kv_heads: Width
    head_dim: Width
    rope_head_dim: Width
    qk_norm: bool

    def rules(self) -> Rules:
        yield "rope_head_dim", self.rope_head_dim % 2 == 0, "must be even"
        yield at_most(self, "rope_head_dim", "head_dim")

    @property
    def rope_dim(self) -> int:
        """Width of the part of a head that is rotated."""
        return self.rope_head_dim


class DenseConfig(Section):
    """A plain SwiGLU of width `model.inter_dim` in every layer."""

    kind: Literal["dense"]


class MoEConfig(Section):
    """Shared and routed SwiGLU experts (DeepSeekMoE, arXiv 2401.06066) behind a sigmoid gate."""

    kind: Literal["moe"]
    moe_inter_dim: Width
    n_routed_experts: Width
    n_shared_experts: Depth
    n_activated_experts: Width
    n_groups: Width
    topk_groups: Width
    route_scale: Positive
    norm_topk: bool
    execution: Literal["auto", "padded", "grouped_mm", "few_tokens", "loop"]
    force_balance: bool

    def rules(self) -> Rules:
        experts, groups, kept = self.n_routed_experts, self.n_groups, self.topk_groups
        in_kept_groups = kept * (experts // groups)
        yield at_most(self, "n_activated_experts", "n_routed_experts")
        yield "n_groups", experts % groups == 0, f"must divide n_routed_experts={experts}"
        yield at_most(self, "topk_groups", "n_groups")
        scored = groups == 1 or experts // groups >= 2
        yield "n_groups", scored, "leaves one expert a group, which is scored by its best two"
        yield (
            "n_activated_experts",
            self.n_activated_experts <= in_kept_groups,
            f"must be at most {in_kept_groups}, what topk_groups={kept} groups hold",
        )


class PlainRopeConfig(Section):
    """Rotary embedding of adjacent pairs (arXiv 2104.09864)."""

    kind: Literal["plain"]
    theta: Positive


class YarnConfig(Section):
    """Rotary embedding stretched to `factor` times the context of training (arXiv 2309.00071).

    The names are those of the released models; with equal mscales the tables keep their size, and
    the scores are sharpened instead.
    """

    kind: Literal["yarn"]
    theta: Annotated[float, Field(gt=1)]
    factor: Annotated[float, Field(ge=1)]
    original_max_seq_len: Length
    beta_fast: Positive
    beta_slow: Positive
    mscale: Annotated[float, Field(ge=0)]
    mscale_all_dim: Annotated[float, Field(ge=0)]

    def rules(self) -> Rules:
        yield at_most(self, "beta_slow", "beta_fast")

    @classmethod
    def of_deepseek_v3(cls, theta: float, *, original_max_seq_len: int) -> "YarnConfig":
        """The constants of DeepSeek-V3, not yet stretched."""
        return cls(
            kind="yarn",
            theta=theta,
            factor=1.0,
            original_max_seq_len=original_max_seq_len,
            beta_fast=32.0,
            beta_slow=1.0,
            mscale=1.0,
            mscale_all_dim=1.0,
        )

    def temperature(self, mscale: float) -> float:
        """YaRN's attention temperature, 0.1 mscale ln(factor) + 1."""
        return 0.1 * mscale * math.log(self.factor) + 1

    @staticmethod
    def stretch(context: int, trained: int) -> float:
        """The factor for `context` tokens after a training on `trained`."""
        try:
            return max(1.0, context / trained)
        except (TypeError, ZeroDivisionError):  # not yet validated; the key that is bad says so
            return 1.0

    @property
    def amplitude(self) -> float:
        """What the rotary tables are multiplied by."""
        return self.temperature(self.mscale) / self.temperature(self.mscale_all_dim)

    @property
    def reach(self) -> int:
        """Tokens of context that the stretched positions cover."""
        return round(self.factor * self.original_max_seq_len)


Attention = Annotated[MLAConfig | GroupedAttentionConfig, Field(discriminator="kind")]
FFN = Annotated[DenseConfig | MoEConfig, Field(discriminator="kind")]
RopeConfig = PlainRopeConfig | YarnConfig


class ModelConfig(Section):
    """The network."""

    vocab_size: Length
    max_seq_len: Length
    dim: Width
    n_layers: Annotated[Depth, Field(gt=0)]
    n_heads: Width
    n_dense_layers: Depth
    inter_dim: Width
    norm_eps: Positive
    init_std: Positive
    tie_embeddings: bool
    mtp_depth: Depth
    mtp_input: Literal["post_norm", "pre_norm"]
    attention: Attention
    ffn: FFN
    rope: Annotated[RopeConfig, Field(discriminator="kind")]

    def rules(self) -> Rules:
        attention = self.attention
        if isinstance(attention, GroupedAttentionConfig):
            kind, kv_heads = attention.kind, attention.n_kv_heads
            expected = {"mha": self.n_heads, "mqa": 1}.get(kind, kv_heads)
            yield "attention.n_kv_heads", kv_heads == expected, f"must be {expected} for {kind}"
            divides = self.n_heads % kv_heads == 0
            yield "n_heads", divides, f"must be divisible by attention.n_kv_heads={kv_heads}"
        yield at_most(self, "n_dense_layers", "n_layers")
        if isinstance(self.ffn, MoEConfig) and self.ffn.execution == "grouped_mm":
            aligned = self.dim % 8 == self.ffn.moe_inter_dim % 8 == 0
            yield "ffn.execution", aligned, "needs dim and moe_inter_dim to be multiples of 8"
        if isinstance(self.rope, YarnConfig):
            reach = self.rope.reach
            within = self.max_seq_len <= reach
            yield "max_seq_len", within, f"must be at most {reach}, where model.rope ends"

    def extended(self, context: int) -> "ModelConfig":
        """The same network for `context` tokens; by YaRN where it was trained on fewer."""
        rope = self.rope
        if isinstance(rope, PlainRopeConfig) and context > self.max_seq_len:
            rope = YarnConfig.of_deepseek_v3(rope.theta, original_max_seq_len=self.max_seq_len)
        if isinstance(rope, YarnConfig) and context > rope.reach:
            factor = rope.stretch(context, rope.original_max_seq_len)
            rope = rope.model_copy(update={"factor": factor})
        return self.model_copy(update={"max_seq_len": context, "rope": rope})

    @property
    def has_experts(self) -> bool:
        """Whether any block, MTP blocks included, holds experts."""
        return self.is_moe(self.n_layers - 1 + min(1, self.mtp_depth))

    def is_moe(self, layer: int) -> bool:
        """Whether block `layer` holds experts; MTP blocks are the layers from `n_layers` on."""
        return self.ffn.kind == "moe" and layer >= self.n_dense_layers
