"""Start a run with the weights of another: `train.py init_from=PATH`.

The model and the tokenizer are those of the checkpoint; everything else is the new run's own.
Only its context may grow: `model/rope=yarn` stretches the positions to `data.seq_len` tokens.
"""

from collections.abc import Sequence
from typing import Any

from mla_lm.checkpoint.find import locate, read
from mla_lm.checkpoint.record import RECORD, Record
from mla_lm.config import RunConfig
from mla_lm.config.compose import with_values
from mla_lm.config.explain import key_of
from mla_lm.config.section import value_at
from mla_lm.errors import UserError

EXTEND = "model/rope=yarn"
FIXED = ("model", "data.tokenizer")
FREE = ("model.ffn.execution", "model.ffn.force_balance")


def resolve_init(cfg: RunConfig, overrides: Sequence[str] = ()) -> tuple[RunConfig, Record]:
    """`cfg` with the model and tokenizer of `cfg.init_from`, and the record of that checkpoint.

    Raises UserError for an override that would change either, beyond extending the context.
    """
    path = locate(str(cfg.init_from))
    record = read(path, RECORD)[0]
    stored = record.run_config()
    for override in overrides:
        key = key_of(override)
        is_fixed = any(f"{key}.".startswith(f"{section}.") for section in FIXED)
        if is_fixed and key not in FREE and override != EXTEND:
            owner = f"the model and the tokenizer are those of init_from={path}"
            raise UserError(f"{override}: {owner}")
    model = stored.model
    if cfg.model.rope.kind == "yarn":
        if cfg.data.seq_len <= model.max_seq_len:
            raise UserError(
                f"data.seq_len={cfg.data.seq_len}: {EXTEND} extends init_from={path} beyond its "
                f"{model.max_seq_len} tokens; give more, or leave it out"
            )
        model = model.extended(cfg.data.seq_len)
    changes: dict[str, Any] = {
        "model": model.model_dump(),
        "data.tokenizer": stored.data.tokenizer.of_checkpoint().model_dump(),
        "init_from": str(path),
        "resume": None,
    }
    if model.ffn.kind == cfg.model.ffn.kind == "moe":
        changes |= {key: value_at(cfg, key) for key in FREE}
    return with_values(cfg, changes), record
