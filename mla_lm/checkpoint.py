"""Checkpoint files: which is the newest good one, what it records, and the model inside.

A file is read with `weights_only=True`: plain containers and tensors, nothing is executed.
Knows the record the project adds to Lightning's checkpoint, not Lightning.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from mla_lm.config import RunConfig
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError
from mla_lm.model import Transformer

RECORD = "mla_lm"  # the key of the record in the file
PREFIX = "model."  # where Lightning keeps the network's tensors


class Record(BaseModel):
    """What a run leaves in its checkpoints besides tensors and Lightning's own state."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    config: dict[str, Any]
    overrides: list[str]
    tokenizer: str  # the content of tokenizer.json
    data: dict[str, Any]  # the manifest of the prepared corpus


def read(path: Path) -> tuple[Record, dict[str, Any]]:
    """The record and the whole content; raises UserError when `path` is no checkpoint of a run."""
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return Record(**content[RECORD]), content
    except Exception as error:  # a damaged file fails in many ways, all of them mean the same
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:100]
        raise UserError(f"{path}: not a checkpoint of mla_lm, or damaged ({reason})") from None


def saved(folder: Path) -> list[Path]:
    """The checkpoint files of a folder, the highest step first, good or not."""
    steps = {path: re.fullmatch(r"step-(\d+)\.ckpt", path.name) for path in folder.glob("*.ckpt")}
    return sorted(
        (path for path, match in steps.items() if match),
        key=lambda path: int(path.stem.removeprefix("step-")),
        reverse=True,
    )


def run_folder(path: Path) -> Path:
    """The run a checkpoint file belongs to; its own folder when it lies outside of a run."""
    folder = path.resolve().parent
    return folder.parent if folder.name == "checkpoints" else folder


def newest(run_dir: Path) -> Path | None:
    """The checkpoint of the highest step in a run folder that can be read; bad ones are named."""
    for path in saved(run_dir / "checkpoints"):
        try:
            read(path)
        except UserError as error:
            print(f"skipped {error}", file=sys.stderr)
        else:
            return path
    return None


def locate(path: str) -> Path:
    """A checkpoint from a file or a run folder; raises UserError where there is none."""
    where = Path(os.path.expanduser(path))
    if not where.is_dir():
        return where
    found = newest(where)
    if found is None:
        raise UserError(f"{path}: no checkpoint in this folder")
    return found


def require_corpus(path: Path, manifest: dict[str, Any]) -> None:
    """Refuse a prepared corpus whose text, split or tokenizer `path` was not trained with."""
    trained = read(path)[0].data
    for key in ("corpus", "threshold", "tokenizer_sha256"):
        if trained.get(key) != manifest[key]:
            raise UserError(
                f"{path}: trained with data {key}={trained.get(key)}, here it is {manifest[key]}"
            )


def load_checkpoint(
    path: str | Path, *, context: int | None = None
) -> tuple[Transformer, RunConfig, Tokenizer]:
    """The model in evaluation mode, its run's configuration and its tokenizer.

    `path` is a checkpoint or a run folder; `context` the tokens the model is to read at once, by
    YaRN where they are more than it was trained on. Raises UserError when the checkpoint is
    damaged or does not fit.
    """
    found = locate(str(path))
    record, content = read(found)
    try:
        cfg = RunConfig.model_validate(record.config)
        if context is not None:
            cfg = cfg.model_copy(update={"model": cfg.model.extended(context)})
        model = Transformer(cfg.model)
        state = content["state_dict"]
        model.load_state_dict({k.removeprefix(PREFIX): v for k, v in state.items()})
        tokenizer = Tokenizer(record.tokenizer, end_of_text=cfg.data.tokenizer.end_of_text)
    except Exception as error:  # a record made by hand fails in many ways
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{found}: does not fit this version of mla_lm ({reason})") from None
    return model.eval(), cfg, tokenizer
