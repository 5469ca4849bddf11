"""The typed configuration of a run: the table of contents of everything that can be set.

Hydra composes YAML into a plain dict, `RunConfig` validates it once, and everything downstream
takes the typed, frozen object. Defaults live in `configs/` only. Knows neither torch nor Hydra.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator
from pydantic_core import PydanticCustomError

Size = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Strings = Annotated[tuple[str, ...], Strict(False)]
Precision = Literal["auto", "32-true", "bf16-mixed"]


class Section(BaseModel):
    """A group of keys: unknown keys, NaN, infinities and silent conversions are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class Sizes(Section):
    """Widths a size preset hands to whichever attention and FFN options are chosen (YAML only)."""

    head_dim: Size
    nope_head_dim: Size
    rope_head_dim: Size
    n_kv_heads: Size
    q_lora_rank: Size | None
    kv_lora_rank: Size
    moe_inter_dim: Size
    n_routed_experts: Size
    n_activated_experts: Size


class MLAConfig(Section):
    """Multi-head Latent Attention (arXiv 2405.04434, section 2.1)."""

    kind: Literal["mla"]
    q_lora_rank: Size | None
    kv_lora_rank: Size
    qk_nope_head_dim: Size
    qk_rope_head_dim: Size
    v_head_dim: Size

    @model_validator(mode="after")
    def _rope_pairs(self) -> Self:
        require(
            self.qk_rope_head_dim % 2 == 0,
            "qk_rope_head_dim",
            self.qk_rope_head_dim,
            "must be even",
        )
        return self

    @property
    def rope_dim(self) -> int:
        """Width of the part of a head that is rotated."""
        return self.qk_rope_head_dim


class GroupedAttentionConfig(Section):
    """MHA, GQA or MQA: each of `n_kv_heads` heads serves `n_heads / n_kv_heads` query heads."""

    kind: Literal["mha", "gqa", "mqa"]
    n_kv_heads: Size
    head_dim: Size
    rope_head_dim: Size
    qk_norm: bool

    @model_validator(mode="after")
    def _rope_part(self) -> Self:
        require(self.rope_head_dim % 2 == 0, "rope_head_dim", self.rope_head_dim, "must be even")
        require(
            self.rope_head_dim <= self.head_dim,
            "rope_head_dim",
            self.rope_head_dim,
            f"must be at most head_dim={self.head_dim}",
        )
        return self

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
    moe_inter_dim: Size
    n_routed_experts: Size
    n_shared_experts: Count
    n_activated_experts: Size
    n_groups: Size
    topk_groups: Size
    route_scale: Positive
    norm_topk: bool

    @model_validator(mode="after")
    def _groups(self) -> Self:
        experts, groups, kept = self.n_routed_experts, self.n_groups, self.topk_groups
        active = self.n_activated_experts
        require(
            active <= experts,
            "n_activated_experts",
            active,
            f"must be at most n_routed_experts={experts}",
        )
        require(
            experts % groups == 0, "n_groups", groups, f"must divide n_routed_experts={experts}"
        )
        require(kept <= groups, "topk_groups", kept, f"must be at most n_groups={groups}")
        require(
            groups == 1 or experts // groups >= 2,
            "n_groups",
            groups,
            "leaves one expert a group, but a group is scored by its best two",
        )
        require(
            active <= kept * (experts // groups),
            "n_activated_experts",
            active,
            f"must be at most {kept * (experts // groups)}, what topk_groups={kept} groups hold",
        )
        return self


class RopeConfig(Section):
    """Rotary embedding of adjacent pairs (arXiv 2104.09864)."""

    theta: Positive


Attention = Annotated[MLAConfig | GroupedAttentionConfig, Field(discriminator="kind")]
FFN = Annotated[DenseConfig | MoEConfig, Field(discriminator="kind")]


class ModelConfig(Section):
    """The network."""

    vocab_size: Size
    max_seq_len: Size
    dim: Size
    n_layers: Size
    n_heads: Size
    n_dense_layers: Count
    inter_dim: Size
    norm_eps: Positive
    init_std: Positive
    tie_embeddings: bool
    mtp_depth: Count
    mtp_input: Literal["post_norm", "pre_norm"]
    attention: Attention
    ffn: FFN
    rope: RopeConfig
    sizes: Annotated[Sizes | None, Field(exclude=True, repr=False)] = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        attention = self.attention
        if isinstance(attention, GroupedAttentionConfig):
            kv_heads = attention.n_kv_heads
            expected = {"mha": self.n_heads, "mqa": 1}.get(attention.kind, kv_heads)
            require(
                kv_heads == expected,
                "attention.n_kv_heads",
                kv_heads,
                f"must be {expected} for {attention.kind}",
            )
            require(
                self.n_heads % kv_heads == 0,
                "n_heads",
                self.n_heads,
                f"must be divisible by attention.n_kv_heads={kv_heads}",
            )
        require(
            self.n_dense_layers <= self.n_layers,
            "n_dense_layers",
            self.n_dense_layers,
            f"must be at most n_layers={self.n_layers}",
        )
        require(
            self.mtp_depth < self.max_seq_len,
            "mtp_depth",
            self.mtp_depth,
            f"must be below max_seq_len={self.max_seq_len}",
        )
        return self

    def is_moe(self, layer: int) -> bool:
        """Whether block `layer` holds experts; MTP blocks are the layers from `n_layers` on."""
        return self.ffn.kind == "moe" and layer >= self.n_dense_layers


class BalanceConfig(Section):
    """Load balancing: bias updates (arXiv 2408.15664) and the sequence loss of DeepSeek-V3."""

    bias_update_speed: NonNegative
    sequence_loss_weight: NonNegative


class TokenizerConfig(Section):
    """A byte-level BPE trained on the training split."""

    vocab_size: Annotated[int, Field(ge=257)]


class DataConfig(Section):
    """Text to batches. `batch_size` counts sequences per device and forward pass."""

    kind: Literal["stdlib", "text"]
    path: str | None
    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    tokenizer: TokenizerConfig
    cache_dir: str
    seq_len: Annotated[int, Field(gt=1)]
    batch_size: Size

    @model_validator(mode="after")
    def _path(self) -> Self:
        require(
            bool(self.path) or self.kind == "stdlib",
            "path",
            self.path,
            "must name a file, a folder or a glob",
        )
        return self


class OptimConfig(Section):
    """AdamW (arXiv 1711.05101), or Muon for the hidden matrices, and the learning-rate schedule.

    Fractions are of the run's steps.
    """

    kind: Literal["adamw", "muon"]
    lr: Positive
    betas: Annotated[tuple[Fraction, Fraction], Strict(False)]
    eps: Positive
    weight_decay: NonNegative
    schedule: Literal["cosine", "wsd"]
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)]
    decay_fraction: Annotated[float, Field(ge=0, le=1)]
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)]


class LossConfig(Section):
    """Weight of the MTP loss: `mtp_weight` up to the share `mtp_switch` of the run, then final."""

    mtp_weight: NonNegative
    mtp_final_weight: NonNegative
    mtp_switch: Annotated[float, Field(ge=0, le=1)]


class TrainerConfig(Section):
    """Lightning's trainer, and when to look at the run; steps are optimizer steps."""

    accelerator: Literal["auto", "cpu", "gpu"]
    max_steps: Size
    accumulate_grad_batches: Size
    gradient_clip_val: Positive | None
    val_every_n_steps: Size
    limit_val_batches: Size | None
    log_every_n_steps: Size


class CheckpointConfig(Section):
    """When to save, and how many of the newest checkpoints to keep."""

    every_n_steps: Size
    keep: Annotated[int, Field(ge=2)]


class RunConfig(Section):
    """Everything `train.py` does. `logger` and `callbacks` are the user's own `_target_` files."""

    run_dir: str
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    precision: Precision
    resume: str | None
    resume_allow: Strings
    model: ModelConfig
    balance: BalanceConfig
    data: DataConfig
    optim: OptimConfig
    loss: LossConfig
    trainer: TrainerConfig
    checkpoint: CheckpointConfig
    logger: dict[str, Any]
    callbacks: dict[str, Any]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        require(
            self.data.seq_len <= self.model.max_seq_len,
            "data.seq_len",
            self.data.seq_len,
            f"must be at most model.max_seq_len={self.model.max_seq_len}",
        )
        require(
            self.model.mtp_depth < self.data.seq_len,
            "model.mtp_depth",
            self.model.mtp_depth,
            f"must be below data.seq_len={self.data.seq_len}",
        )
        require(
            self.data.tokenizer.vocab_size <= self.model.vocab_size,
            "model.vocab_size",
            self.model.vocab_size,
            f"must be at least data.tokenizer.vocab_size={self.data.tokenizer.vocab_size}",
        )
        return self


class EvalConfig(Section):
    """What `eval.py` does."""

    ckpt: Annotated[str, Field(min_length=1)]
    precision: Precision
    batch_size: Size
    limit: Size | None


def require(rule_holds: bool, key: str, value: object, rule: str) -> None:
    """Refuse `value` of `key` (relative to the section being validated) unless `rule` holds."""
    if not rule_holds:
        raise PydanticCustomError("rule", "{rule}", {"rule": rule, "key": key, "value": value})
