"""A DeepSeek-V2/V3-style folder as a run at step 0: to evaluate, sample and train further."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.checkpoint.record import PREFIX, RECORD, STEP, WEIGHTS, Record, write_run_files
from mla_lm.config import RunConfig
from mla_lm.config.compose import load_config, with_values
from mla_lm.cost import require_stored
from mla_lm.data.corpora import open_corpus
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError, one_line
from mla_lm.files import new_folder, read_object, read_text
from mla_lm.interop.config_from_hf import model_section
from mla_lm.interop.weights import Shards, read_state

ROW = 1024  # default data.seq_len, where the context is not shorter


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
) -> tuple[RunConfig, dict[str, Tensor], Tokenizer]:
    """Read `src`; `overrides` set what is not the model's, such as data.

    `tokenizer` is a `tokenizer.json` where `src` has none; `end_of_text` overrides the token that
    `src` begins texts with. Raises UserError for another architecture, code, pickle, or tensors
    that do not fit.
    """
    config = read_object(src / "config.json")
    shards = Shards(src)
    try:
        model = model_section(config, shards.file_of)
    except UserError:
        raise
    except Exception as error:  # a file made by hand fails in many ways
        raise UserError(f"{src / 'config.json'}: cannot be read ({one_line(error)})") from None
    separator = end_of_text or _separator(src)
    path = tokenizer or src / "tokenizer.json"
    try:
        vocabulary = Tokenizer(read_text(path), end_of_text=separator)
    except Exception as error:  # the library raises plain `Exception`
        hint = "tokenizer=FILE and end_of_text=TOKEN name others"
        raise UserError(f"{path}: {one_line(error)}; {hint}") from None
    defaults = [f"data.seq_len={min(ROW, model['max_seq_len'])}"]
    if model["ffn"]["kind"] != "moe":
        defaults.append("balance=none")
    of_src = {
        "kind": "pretrained",
        "path": "tokenizer.json",
        "end_of_text": separator,
        "vocab_size": vocabulary.vocab_size,
    }
    run = load_config([*defaults, *overrides])
    cfg = with_values(run, {"model": model, "data.tokenizer": of_src})
    require_stored(cfg.model, shards.n_bytes(), src / "config.json")
    return cfg, read_state(shards, cfg.model), vocabulary


def import_folder(src: Path, out: Path, **options: Any) -> RunConfig:
    """Write the run folder `out`, whole or not at all; `options` are those of `read_folder`.

    Raises UserError as that does, and where `out` holds anything.
    """
    cfg, state, tokenizer = read_folder(src, **options)
    cfg = cfg.model_copy(update={"run_dir": str(out)})
    # Files that the user names for it are read later where they are still the same.
    data = {"settings": {"source": open_corpus(cfg.data).source}} if cfg.data.named else {}
    record = Record.of(cfg, command="", tokenizer=tokenizer.json, data=data, environment={})
    weights = {f"{PREFIX}{name}": tensor for name, tensor in state.items()}
    with new_folder(out) as folder:
        write_run_files(folder, cfg, record)
        checkpoint_file.write(
            folder / "checkpoints" / "step-000000.ckpt",
            {RECORD: record.stored(), WEIGHTS: weights, STEP: 0},
        )
    return cfg


def _separator(src: Path) -> str:
    """The `bos_token` of the tokenizer's configuration, or its `eos_token` where that is unset."""
    path = src / "tokenizer_config.json"
    content = read_object(path) if path.is_file() else {}
    token = content.get("bos_token") or content.get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    if not isinstance(token, str):
        raise UserError(
            f"{path}: no bos_token or eos_token; name the separator by end_of_text=TOKEN"
        )
    return token
