"""Find, verify and load a checkpoint: the newest good one of a run, its record, its model."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.checkpoint.alike import require_alike
from mla_lm.checkpoint.record import CONFIG_FILE, PREFIX, RECORD, STEP, WEIGHTS, Record
from mla_lm.config import RunConfig
from mla_lm.cost import require_stored
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError
from mla_lm.files import read_object
from mla_lm.model import Transformer


class Found(NamedTuple):
    """A checkpoint that has been read, and thereby verified; `content` as `read` gives it."""

    path: Path
    record: Record
    content: dict[str, Any]

    def weights(self) -> dict[str, Tensor]:
        """The network's state dict; UserError where it is not the configuration's, or finite."""
        with _fitting(self.path):
            state = {name.removeprefix(PREFIX): t for name, t in self.content[WEIGHTS].items()}
            with torch.device("meta"):
                fresh = Transformer(self.record.run_config().model).state_dict()
            require_alike(state, fresh, "")
        return state

    def model(self, context: int | None = None) -> tuple[Transformer, RunConfig, Tokenizer]:
        """As `load_checkpoint`."""
        state = self.weights()
        with _fitting(self.path):
            cfg = self.record.run_config()
            if context is not None:
                cfg = cfg.model_copy(update={"model": cfg.model.extended(context)})
            model = Transformer(cfg.model)
            model.load_state_dict(state)
            tokenizer = self.record.own_tokenizer()
            model.n_tokens = tokenizer.vocab_size
        return model.eval(), cfg, tokenizer


def newest(run_dir: Path) -> Path | None:
    """The path of `find_newest`."""
    found = find_newest(run_dir, RECORD)
    return found.path if found else None


def find_newest(run_dir: Path, *keys: str) -> Found | None:
    """The checkpoint of the highest step in a run folder that verifies; bad ones are named."""
    for path in saved(run_dir / "checkpoints"):
        try:
            return Found(path, *read(path, *keys))
        except UserError as error:
            print(f"skipped {error}", file=sys.stderr)
    return None


def locate(path: str) -> Path:
    """A checkpoint from a file or a run folder; raises UserError where there is none."""
    where = Path(os.path.expanduser(path))
    return find(path, RECORD).path if where.is_dir() else where


def find(path: str | Path, *keys: str) -> Found:
    """`locate` and `read`, which verifies the whole file, at once."""
    where = Path(os.path.expanduser(path))
    found = find_newest(where, *keys) if where.is_dir() else Found(where, *read(where, *keys))
    if found is None:
        raise UserError(f"{path}: no checkpoint in this folder")
    return found


def saved(folder: Path) -> list[Path]:
    """The checkpoint files of a folder, the highest step first, good or not."""
    steps = {path: step_of(path) for path in folder.glob("*.ckpt")}
    return sorted((p for p in steps if steps[p] is not None), key=lambda p: -(steps[p] or 0))


def run_folder(path: Path) -> Path:
    """The run a checkpoint file belongs to; its own folder when it lies outside of a run."""
    folder = path.resolve().parent
    return folder.parent if folder.name == "checkpoints" else folder


def step_of(path: Path) -> int | None:
    """The step in the name of a checkpoint, `step-000200.ckpt`."""
    match = re.fullmatch(r"step-(\d+)\.ckpt", path.name)
    return int(match[1]) if match else None


def read(path: Path, *keys: str) -> tuple[Record, dict[str, Any]]:
    """The record and the content below those of `keys` that are there, all without any.

    Raises UserError when `path` is no checkpoint of a run, is damaged, or is that of another step
    or run than its name and folder say.
    """
    step_named, run_here = step_of(path), _run_id(run_folder(path))
    content = checkpoint_file.read(path, *({RECORD, STEP, *keys} if keys else ()))
    with _fitting(path):
        record = Record.from_stored(content[RECORD])
        require_alike(content[STEP], 0, STEP)
        require_stored(record.run_config().model, path.stat().st_size, "configuration")
    if step_named not in (None, content[STEP]):
        raise UserError(f"{path}: holds step {content[STEP]}, not {step_named}")
    if run_here not in (None, own := record.config["run_id"]):
        raise UserError(f"{path}: belongs to run_id={own}, the run here is {run_here}")
    return record, content


def load_checkpoint(
    path: str | Path, *, context: int | None = None
) -> tuple[Transformer, RunConfig, Tokenizer]:
    """The model in evaluation mode, its run's configuration and its tokenizer.

    `path` is a checkpoint or a run folder; `context` the tokens the model is to read at once, by
    YaRN where they are more than it was trained on. Raises UserError when the checkpoint is
    damaged or does not fit.
    """
    return find(path, WEIGHTS).model(context)


def _run_id(run_dir: Path) -> str | None:
    """The id of the run in a folder; None where it has left none."""
    try:
        return str(read_object(run_dir / CONFIG_FILE)["run_id"])
    except (UserError, KeyError):
        return None


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """UserError for whatever fails inside: a checkpoint made by hand fails in many ways."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: does not fit this version of mla_lm ({reason})") from None
