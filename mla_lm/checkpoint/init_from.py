"""Start a run with the weights of another: `train.py init_from=PATH`.

The model and the tokenizer are those of the checkpoint; everything else is the new run's own.
Only its context may grow: `model/rope=yarn` stretches the positions to `data.seq_len` tokens.
"""

from collections.abc import Sequence

from mla_lm.checkpoint.record import RECORD, locate, read
from mla_lm.config import ModelConfig, RunConfig
from mla_lm.config.compose import load_config
from mla_lm.config.words import OF_TOKENIZER, model_words, quoted, tokenizer_words
from mla_lm.errors import UserError

EXTEND = "model/rope=yarn"
FIXED = ("model=", "model/", "model.", *OF_TOKENIZER)
FREE = ("model.ffn.execution=", "model.ffn.force_balance=")


def resolve_init(cfg: RunConfig, overrides: list[str]) -> tuple[RunConfig, list[str]]:
    """The configuration and overrides with the model and tokenizer that `cfg.init_from` has.

    Raises UserError for a word that would change either, beyond extending the context.
    """
    path = locate(str(cfg.init_from))
    stored = read(path, RECORD)[0].run_config()
    for word in (word for word in overrides if word != EXTEND):
        if word.lstrip("+~").startswith(FIXED) and not word.startswith(FREE):
            raise UserError(f"{word}: the model and the tokenizer are those of init_from={path}")
    model = stored.model
    if cfg.model.rope.kind == "yarn":
        model = _extended(model, cfg.data.seq_len, f"init_from={path}")
    words = model_words(model.model_dump(mode="json"))
    merged = [*words, *tokenizer_words(stored.data.tokenizer), *overrides]
    own = [quoted("run_dir", cfg.run_dir), f"run_id={cfg.run_id}"]
    begun = load_config([*merged, *own])
    return begun.model_copy(update={"init_from": str(path), "resume": None}), merged


def own_words(merged: Sequence[str]) -> list[str]:
    """The overrides of `resolve_init` that say neither the checkpoint nor what it has."""
    own = [word for word in merged if not word.startswith((*FIXED, "init_from="))]
    said = merged.count(EXTEND) > 1  # by the user, and of the model
    return [EXTEND, *own] if said else own


def _extended(model: ModelConfig, context: int, origin: str) -> ModelConfig:
    """`model` for rows of `context` tokens; UserError where it takes as many anyway."""
    if context <= model.max_seq_len:
        raise UserError(
            f"data.seq_len={context}: {EXTEND} extends {origin} beyond its {model.max_seq_len} "
            "tokens; give more, or leave it out"
        )
    return model.extended(context)
