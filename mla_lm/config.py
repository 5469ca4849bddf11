"""The typed configuration of a run: the table of contents of everything that can be set.

Hydra composes YAML into a plain dict, `RunConfig` validates it once, and everything downstream
takes the typed, frozen object. Defaults live in `configs/` only. Knows neither torch nor Hydra.
"""

from collections.abc import Iterable
from functools import reduce
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator
from pydantic_core import PydanticCustomError

Size = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Strings = Annotated[tuple[str, ...], Strict(False)]
Rules = Iterable[tuple[str, bool, str]]
Precision = Literal["auto", "32-true", "bf16-mixed"]


class Section(BaseModel):
    """A group of keys: unknown keys, NaN, infinities and silent conversions are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    def rules(self) -> Rules:
        """What must hold between keys: (key, whether it holds, the rule in words)."""
        return ()

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        for key, holds, rule in self.rules():
            if not holds:
                context = {"rule": rule, "key": key, "value": value_at(self, key)}
                raise PydanticCustomError("rule", "{rule}", context)
        return self


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

    def rules(self) -> Rules:
        yield "qk_rope_head_dim", self.qk_rope_head_dim % 2 == 0, "must be even"

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
    moe_inter_dim: Size
    n_routed_experts: Size
    n_shared_experts: Count
    n_activated_experts: Size
    n_groups: Size
    topk_groups: Size
    route_scale: Positive
    norm_topk: bool

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

    def rules(self) -> Rules:
        attention = self.attention
        if isinstance(attention, GroupedAttentionConfig):
            kind, kv_heads = attention.kind, attention.n_kv_heads
            expected = {"mha": self.n_heads, "mqa": 1}.get(kind, kv_heads)
            yield "attention.n_kv_heads", kv_heads == expected, f"must be {expected} for {kind}"
            divides = self.n_heads % kv_heads == 0
            yield "n_heads", divides, f"must be divisible by attention.n_kv_heads={kv_heads}"
        yield at_most(self, "n_dense_layers", "n_layers")

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

    def rules(self) -> Rules:
        given = self.kind == "stdlib" or bool(self.path)
        yield "path", given, "must name a file, a folder or a glob"


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

    def rules(self) -> Rules:
        yield at_most(self, "data.seq_len", "model.max_seq_len")
        size = self.data.tokenizer.vocab_size
        holds = self.model.vocab_size >= size
        yield "model.vocab_size", holds, f"must be at least data.tokenizer.vocab_size={size}"
        fits = self.model.mtp_depth < self.data.seq_len
        yield "model.mtp_depth", fits, f"must be below data.seq_len={self.data.seq_len}"


class EvalConfig(Section):
    """What `eval.py` does."""

    ckpt: Annotated[str, Field(min_length=1)]
    precision: Precision
    batch_size: Size
    limit: Size | None


def at_most(section: BaseModel, key: str, limit: str) -> tuple[str, bool, str]:
    """The rule that one key of a section may not exceed another."""
    value, bound = value_at(section, key), value_at(section, limit)
    return key, value <= bound, f"must be at most {limit}={bound}"


def value_at(section: BaseModel, key: str) -> Any:
    """The value of a dotted key."""
    return reduce(getattr, key.split("."), section)
