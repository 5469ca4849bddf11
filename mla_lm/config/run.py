"""Training and evaluation: everything `train.py` and `eval.py` can be told."""

from typing import Annotated, Any, Literal

from pydantic import Field, Strict

from mla_lm.config.data import DataConfig
from mla_lm.config.model import ModelConfig
from mla_lm.config.section import (
    Fraction,
    NonNegative,
    PathName,
    PathNames,
    Positive,
    Rules,
    Section,
    Size,
    Strings,
    at_most,
)

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
Accelerator = Literal["auto", "cpu", "gpu", "mps"]
Checkpointing = Literal["none", "reentrant", "non_reentrant"]


class BalanceConfig(Section):
    """Load balancing: bias updates (arXiv 2408.15664), and losses of DeepSeek-V3 and of Switch.

    0 turns a strategy off; they combine.
    """

    bias_update_speed: NonNegative
    bias_decay_fraction: Annotated[float, Field(ge=0, le=1)]
    sequence_loss_weight: NonNegative
    switch_loss_weight: NonNegative

    def strategies(self) -> list[tuple[str, float]]:
        """The key of each strategy and how strong it is."""
        keys = ("bias_update_speed", "sequence_loss_weight", "switch_loss_weight")
        return [(key, getattr(self, key)) for key in keys]


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

    strategy: Literal["ddp", "fsdp"]
    devices: Literal["auto"] | Size
    timeout_minutes: Positive
    accelerator: Accelerator
    max_steps: Size
    max_minutes: Positive | None
    min_steps: Size | None
    fallbacks: Strings
    accumulate_grad_batches: Size
    gradient_clip_val: Positive | None
    activation_checkpointing: Checkpointing
    compile: bool
    max_skipped_steps: Size
    val_every_n_steps: Size | None
    limit_val_batches: Size | None
    log_every_n_steps: Size

    def rules(self) -> Rules:
        for key in ("min_steps", "fallbacks"):
            used = self.max_minutes is not None or not getattr(self, key)
            yield key, used, "belongs to max_minutes, which is null"

    @property
    def validation_interval(self) -> int:
        """Steps between validations, by default a quarter of the run; its end is validated too."""
        return self.val_every_n_steps or -(-self.max_steps // 4)


class CheckpointConfig(Section):
    """When to save, and how many of the newest checkpoints to keep; the best is kept anyway."""

    every_n_steps: Size
    every_minutes: Positive | None
    keep: Annotated[int, Field(ge=2)]


class RunConfig(Section):
    """Everything `train.py` does. `logger` and `callbacks` are the user's own `_target_` files."""

    run_dir: PathName
    run_id: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    precision: Precision
    resume: PathName | None
    resume_allow: Strings
    init_from: PathName | None
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
        for key, strength in self.balance.strategies():
            acts = strength == 0 or self.model.has_experts
            yield (
                f"balance.{key}",
                acts,
                "the model has no experts to balance: take balance=none",
            )
        alone = not (self.trainer.compile and self.trainer.strategy == "fsdp")
        yield "trainer.compile", alone, "goes with trainer.strategy=ddp only"
        fits = self.model.mtp_depth < self.data.seq_len
        yield "model.mtp_depth", fits, f"must be below data.seq_len={self.data.seq_len}"
        for group in ("logger", "callbacks"):
            for name, node in getattr(self, group).items():
                made = isinstance(node, dict) and isinstance(node.get("_target_"), str)
                rule = "must have a class as its _target_, or be null"
                yield f"{group}.{name}", made or node is None, rule


class QuestionFile(Section):
    """JSONL; `delimiter` joins context and continuation."""

    path: PathName
    delimiter: str


class EvalConfig(Section):
    """What `eval.py` does."""

    ckpt: PathName
    parts: Annotated[
        tuple[Literal["lm", "long_context", "speculation", "code", "profile"], ...], Strict(False)
    ]
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    precision: Precision
    accelerator: Accelerator
    batch_size: Size
    limit: Size | None
    context: Size | None
    stride: Size | None
    tasks: PathNames
    tasks_include: PathName | None
    tasks_dir: PathName
    question_files: dict[str, QuestionFile]

    @property
    def suffix(self) -> str:
        """Of the names of result files, where the context is not that of training."""
        return f"-context-{self.context}" if self.context else ""

    def rules(self) -> Rules:
        yield "stride", self.stride is None or "lm" in self.parts, "belongs to part lm: add it"
        yield "parts", bool(self.parts or self.tasks), "nothing to do: name parts or tasks"
