"""A DeepSeek-V2/V3-style folder as a run at step 0: to evaluate, sample and train further."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.checkpoint.record import PREFIX, RECORD, STEP, WEIGHTS, Record, write_run_files
from mla_lm.config import RunConfig
from mla_lm.config.compose import load_config, validate
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError, one_line
from mla_lm.files import new_folder, read_object
from mla_lm.interop.foreign import model_section
from mla_lm.interop.weights import Shards, read_state

UNSAFE = re.compile(r"[$\\'\x00-\x1f]")  # could be interpolated when a configuration is composed
ROW = 1024  # default data.seq_len, where the context is not shorter


class Foreign(NamedTuple):
    """The content of a folder."""

    cfg: RunConfig
    state: dict[str, Tensor]
    tokenizer: Tokenizer


def is_foreign(path: Path) -> bool:
    """Whether this is a folder of a `transformers` model rather than a run."""
    file = path / "config.json"
    return file.is_file() and "model_type" in read_object(file)


def read_folder(
    src: Path,
    *,
    overrides: Sequence[str] = (),
    tokenizer: Path | None = None,
    end_of_text: str | None = None,
) -> Foreign:
    """Read `src`; `overrides` set what is not the model's, such as data.

    `tokenizer` is a `tokenizer.json` where `src` has none; `end_of_text` overrides the token that
    `src` begins texts with. Raises UserError for another architecture, code, pickle, or tensors
    that do not fit.
    """
    config = read_object(src / "config.json")
    shards = Shards(src)
    model = model_section(config, shards.holds_layer)
    path = tokenizer or src / "tokenizer.json"
    vocabulary, end_of_text = _tokenizer(path, end_of_text or _separator(src))
    defaults = [f"data.seq_len={min(ROW, model['max_seq_len'])}"]
    if model["ffn"]["kind"] != "moe":
        defaults.append("balance=none")
    values = load_config([*defaults, *overrides]).model_dump()
    values["model"] = model
    values["data"]["tokenizer"] = {
        "kind": "pretrained",
        "path": "tokenizer.json",
        "end_of_text": end_of_text,
        "vocab_size": vocabulary.vocab_size,
    }
    cfg = validate(RunConfig, values)
    return Foreign(cfg, read_state(shards, cfg.model), vocabulary)


def import_folder(src: Path, out: Path, **options: Any) -> RunConfig:
    """Write the run folder `out`, whole or not at all; `options` are those of `read_folder`.

    Raises UserError as that does, and where `out` holds anything.
    """
    found = read_folder(src, **options)
    cfg = found.cfg.model_copy(update={"run_dir": str(out)})
    record = Record.of(cfg, command="", tokenizer=found.tokenizer.json, data={}, environment={})
    with new_folder(out) as folder:
        write_run_files(folder, cfg, record)
        weights = {f"{PREFIX}{name}": tensor for name, tensor in found.state.items()}
        checkpoint_file.write(
            folder / "checkpoints" / "step-000000.ckpt",
            {RECORD: record.stored(), WEIGHTS: weights, STEP: 0},
        )
    return cfg


def _separator(src: Path) -> str | None:
    """The token before each text, else after it, in the tokenizer's configuration."""
    path = src / "tokenizer_config.json"
    if not path.is_file():
        return None
    content = read_object(path)
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
