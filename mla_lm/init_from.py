"""Start a run with the weights of another: `train.py init_from=PATH`.

The model and the tokenizer are those of the checkpoint; everything else is the new run's own.
"""

from mla_lm.checkpoint import RECORD, locate, read
from mla_lm.cli import load_config
from mla_lm.config import RunConfig
from mla_lm.config.words import OF_TOKENIZER, model_words, quoted, tokenizer_words
from mla_lm.errors import UserError

FIXED = ("model=", "model/", "model.", *OF_TOKENIZER)
FREE = ("model.ffn.execution=", "model.ffn.force_balance=")


def resolve_init(cfg: RunConfig, overrides: list[str]) -> tuple[RunConfig, list[str]]:
    """The configuration and overrides with the model and tokenizer that `cfg.init_from` has.

    Raises UserError for a word that would change either.
    """
    path = locate(str(cfg.init_from))
    stored = read(path, RECORD)[0].run_config()
    for word in overrides:
        if word.lstrip("+~").startswith(FIXED) and not word.startswith(FREE):
            raise UserError(f"{word}: the model and the tokenizer are those of init_from={path}")
    words = model_words(stored.model.model_dump(mode="json"))
    merged = [*words, *tokenizer_words(stored.data.tokenizer), *overrides]
    own = [quoted("run_dir", cfg.run_dir), f"run_id={cfg.run_id}"]
    begun = load_config([*merged, *own])
    return begun.model_copy(update={"init_from": str(path)}), merged
