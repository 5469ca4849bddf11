"""Start a run with the weights of another: `train.py init_from=PATH`.

The model and the tokenizer are those of the checkpoint; everything else is the new run's own.
Only its context may grow: `model/rope=yarn` stretches the positions to `data.seq_len` tokens.
"""

from collections.abc import Sequence
from typing import Any

from mla_lm.checkpoint.find import locate, read
from mla_lm.checkpoint.record import RECORD, Record
from mla_lm.config import ModelConfig, RunConfig
from mla_lm.config.compose import validate
from mla_lm.config.explain import key_of
from mla_lm.config.section import value_at
from mla_lm.errors import UserError

EXTEND = "model/rope=yarn"
FIXED = ("model", "data.tokenizer")
FREE = ("ffn.execution", "ffn.force_balance")  # of the model


def resolve_init(cfg: RunConfig, overrides: Sequence[str] = ()) -> tuple[RunConfig, Record]:
    """`cfg` with the model and tokenizer of `cfg.init_from`, and the record of that checkpoint.

    Raises UserError for an override that would change either, beyond extending the context.
    """
    path = locate(str(cfg.init_from))
    record = read(path, RECORD)[0]
    stored = record.run_config()
    free = [f"model.{key}" for key in FREE]
    for override in overrides:
        key = key_of(override)
        is_fixed = any(f"{key}.".startswith(f"{section}.") for section in FIXED)
        if is_fixed and key not in free and override != EXTEND:
            owner = f"the model and the tokenizer are those of init_from={path}"
            raise UserError(f"{override}: {owner}")
    model = stored.model
    if cfg.model.rope.kind == "yarn":
        model = _extended(model, cfg.data.seq_len, f"init_from={path}")
    values = cfg.model_dump()
    values["model"] = model.model_dump() | _free(model, cfg.model)
    values["data"]["tokenizer"] = stored.data.tokenizer.of_checkpoint().model_dump()
    return validate(RunConfig, values | {"init_from": str(path), "resume": None}), record


def _free(model: ModelConfig, wanted: ModelConfig) -> dict[str, Any]:
    """The FFN with those keys of `wanted` that may differ."""
    if model.ffn.kind != wanted.ffn.kind or model.ffn.kind == "dense":
        return {}
    own = {key.split(".")[-1]: value_at(wanted, key) for key in FREE}
    return {"ffn": model.ffn.model_dump() | own}


def _extended(model: ModelConfig, context: int, origin: str) -> ModelConfig:
    """`model` for rows of `context` tokens; UserError where it takes as many anyway."""
    if context <= model.max_seq_len:
        raise UserError(
            f"data.seq_len={context}: {EXTEND} extends {origin} beyond its {model.max_seq_len} "
            "tokens; give more, or leave it out"
        )
    return model.extended(context)
