"""A DeepSeek-V2/V3-style folder as a run of ours at step 0: to evaluate, sample and train on."""

import re
from collections.abc import Sequence
from pathlib import Path

from mla_lm import checkpoint_file
from mla_lm.atomic import new_folder
from mla_lm.checkpoint import PREFIX, RECORD, STEP, WEIGHTS, Record, write_run_files
from mla_lm.cli import load_config
from mla_lm.config import RunConfig
from mla_lm.config.words import model_words, pretrained_words, quoted
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError, one_line
from mla_lm.interop.foreign import model_section
from mla_lm.interop.weights import Shards, read_json, read_state

UNSAFE = re.compile(r"[$\\'\x00-\x1f]")  # could mean something to who composes a configuration
ROW = 1024  # tokens to evaluate at once, unless told otherwise


def import_folder(
    src: Path,
    out: Path,
    *,
    words: Sequence[str] = (),
    tokenizer: Path | None = None,
    end_of_text: str | None = None,
) -> RunConfig:
    """Write the run folder `out`, whole or not at all; `words` say the rest of its configuration.

    `tokenizer` is a `tokenizer.json` where `src` has none, `end_of_text` the token before each
    text where it is not the one that `src` begins them with. Raises UserError for a folder of
    another architecture, with code, pickle or tensors that do not fit, and where `out` holds
    anything.
    """
    config = read_json(src / "config.json")
    shards = Shards(src)
    model = model_section(config, shards.holds_layer)
    path = tokenizer or src / "tokenizer.json"
    vocabulary, end_of_text = _tokenizer(path, end_of_text or _separator(src))
    balance = [] if model["ffn"]["kind"] == "moe" else ["balance=none"]
    overrides = [
        *model_words(model),
        *balance,
        *pretrained_words(end_of_text=end_of_text, vocab_size=vocabulary.vocab_size),
        f"data.seq_len={min(ROW, model['max_seq_len'])}",
        *words,
    ]
    cfg = load_config([*overrides, quoted("run_dir", out)])
    state = read_state(shards, cfg.model)
    record = Record.of(cfg, overrides=overrides, tokenizer=vocabulary.json, data={}, environment={})
    with new_folder(out) as folder:
        write_run_files(folder, cfg, record)
        weights = {f"{PREFIX}{name}": tensor for name, tensor in state.items()}
        checkpoint_file.write(
            folder / "checkpoints" / "step-000000.ckpt",
            {RECORD: record.stored(), WEIGHTS: weights, STEP: 0},
        )
    return cfg


def _separator(src: Path) -> str | None:
    """The token before each text, or else behind it, by the tokenizer's own configuration."""
    path = src / "tokenizer_config.json"
    if not path.is_file():
        return None
    content = read_json(path)
    token = content.get("bos_token") or content.get("eos_token")
    return token.get("content") if isinstance(token, dict) else token


def _tokenizer(path: Path, end_of_text: str | None) -> tuple[Tokenizer, str]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a tokenizer.json by tokenizer=FILE")
    if not isinstance(end_of_text, str) or UNSAFE.search(end_of_text):
        raise UserError(
            f"{path}: bos_token={end_of_text!r}: name what separates texts by end_of_text=TOKEN"
        )
    try:
        return Tokenizer(path.read_text(encoding="utf-8"), end_of_text=end_of_text), end_of_text
    except Exception as error:  # the library raises plain `Exception`
        reason = error if type(error) is ValueError else one_line(error)
        raise UserError(f"{path}: {reason}") from None
