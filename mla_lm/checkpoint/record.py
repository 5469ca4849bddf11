"""Checkpoints of a run: which is the newest good one, what it records, and the model inside.

Knows the record the project adds to Lightning's checkpoint, not Lightning.
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.config import RunConfig
from mla_lm.config.secret import public
from mla_lm.data.prepared import sha256
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError
from mla_lm.files import remove_temporaries, replacing
from mla_lm.model import Transformer

RECORD = "mla_lm"  # the key of the record in the file
STEP = "global_step"  # Lightning's key of the optimizer steps done
WEIGHTS, PREFIX = "state_dict", "model."  # where Lightning keeps the network's tensors
NOT_STORED: dict[str, Any] = {  # classes to import, which come from local YAML, and the command
    "callbacks": {},
    "logger": {},
    "resume": None,
    "resume_allow": (),
}
OF_CORPUS = ("corpus", "threshold", "tokenizer_sha256")  # keys of a manifest that must agree
CONFIG_FILE = "config.json"  # of a run folder


class Record(BaseModel):
    """What a run leaves in its checkpoints besides tensors and Lightning's own state."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    config: dict[str, Any]  # resolved, without the keys of NOT_STORED
    command: str  # for people: what started the run, without secrets; empty without a command
    tokenizer: str  # the content of tokenizer.json
    data: dict[str, Any]  # the manifest of the prepared corpus; empty for imported weights
    environment: dict[str, str | int]  # what else decides the bits: `machine.environment`

    @classmethod
    def of(cls, cfg: RunConfig, **rest: Any) -> Self:
        """The record of a run; `rest` are the other fields."""
        return cls(config=cfg.model_dump(mode="json", exclude=set(NOT_STORED)), **rest)

    def stored(self) -> dict[str, Any]:
        """The tree to put into a checkpoint; the tokenizer's text, which may be long, as bytes."""
        text = np.frombuffer(self.tokenizer.encode(), dtype=np.uint8).copy()
        return {**self.model_dump(), "tokenizer": torch.from_numpy(text)}

    @classmethod
    def from_stored(cls, tree: dict[str, Any]) -> Self:
        """Raises an error of whatever kind when `tree` is not what `stored` makes."""
        record = cls(**{**tree, "tokenizer": tree["tokenizer"].numpy().tobytes().decode()})
        record.own_tokenizer()
        return record

    def own_tokenizer(self) -> Tokenizer:
        """Raises ValueError when it does not fit the configuration."""
        return Tokenizer(self.tokenizer, end_of_text=self.run_config().data.tokenizer.end_of_text)

    def run_config(self) -> RunConfig:
        """The configuration, typed and checked, without what is not stored."""
        if found := sorted(NOT_STORED.keys() & self.config.keys()):
            raise ValueError(f"{found} in the configuration")
        return RunConfig.model_validate({**self.config, **NOT_STORED})


def read(path: Path, *keys: str) -> tuple[Record, dict[str, Any]]:
    """The record and the content below those of `keys` that are there, all without any.

    Raises UserError when `path` is no checkpoint of a run, is damaged, or is that of another step
    or run than its name and folder say.
    """
    content = checkpoint_file.read(path, *({RECORD, STEP, *keys} if keys else ()))
    try:
        record = Record.from_stored(content[RECORD])
        if type(content[STEP]) is not int:
            raise ValueError(f"{STEP} is no number")
    except Exception as error:  # a record made by hand fails in many ways
        raise _unfit(path, error) from None
    named = step_of(path)
    if named not in (None, content[STEP]):
        raise UserError(f"{path}: holds step {content[STEP]}, not {named}")
    here, own = _run_id(run_folder(path)), record.config["run_id"]
    if here not in (None, own):
        raise UserError(f"{path}: belongs to run_id={own}, the run here is {here}")
    return record, content


def read_weights(path: Path) -> tuple[Record, dict[str, Tensor], int]:
    """The record, the network's state dict and the optimizer steps done; UserError as `read`."""
    record, content = read(path, WEIGHTS)
    try:
        state = {name.removeprefix(PREFIX): t for name, t in content[WEIGHTS].items()}
    except (KeyError, AttributeError) as error:
        raise _unfit(path, error) from None
    return record, state, content[STEP]


def _unfit(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:160]
    return UserError(f"{path}: does not fit this version of mla_lm ({reason})")


def step_of(path: Path) -> int | None:
    """The step in the name of a checkpoint, `step-000200.ckpt`."""
    match = re.fullmatch(r"step-(\d+)\.ckpt", path.name)
    return int(match[1]) if match else None


def write_run_files(run_dir: Path, cfg: RunConfig, record: Record) -> None:
    """Beside the checkpoints, for people: configuration, command, versions, corpus, tokenizer."""
    ran = {"command": record.command, "environment": record.environment}
    files = {
        CONFIG_FILE: json.dumps(public(cfg.model_dump(mode="json")), indent=2) + "\n",
        "run.json": json.dumps(ran, indent=2) + "\n",
        "data.json": json.dumps(record.data, indent=2) + "\n",
        "tokenizer.json": record.tokenizer,
    }
    remove_temporaries(run_dir)
    for name, text in files.items():
        with replacing(run_dir / name) as temporary:
            temporary.write_text(text)


def _run_id(run_dir: Path) -> str | None:
    """The id of the run in a folder; None where it has left none."""
    try:
        return str(json.loads((run_dir / CONFIG_FILE).read_text())["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def saved(folder: Path) -> list[Path]:
    """The checkpoint files of a folder, the highest step first, good or not."""
    steps = {path: step_of(path) for path in folder.glob("*.ckpt")}
    return sorted((p for p in steps if steps[p] is not None), key=lambda p: -(steps[p] or 0))


def run_folder(path: Path) -> Path:
    """The run a checkpoint file belongs to; its own folder when it lies outside of a run."""
    folder = path.resolve().parent
    return folder.parent if folder.name == "checkpoints" else folder


def newest(run_dir: Path) -> Path | None:
    """The checkpoint of the highest step in a run folder that verifies; bad ones are named."""
    for path in saved(run_dir / "checkpoints"):
        try:
            read(path, RECORD)
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


def require_corpus(path: str | Path, record: Record, manifest: dict[str, Any]) -> None:
    """Refuse a prepared corpus whose text, split or tokenizer `path` was not trained with.

    Of an imported model nobody knows the text, so any will do.
    """
    trained = record.data or {**manifest, "tokenizer_sha256": sha256(record.tokenizer)}
    for key in OF_CORPUS:
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
    record, state, _ = read_weights(found)
    try:
        cfg = record.run_config()
        if context is not None:
            cfg = cfg.model_copy(update={"model": cfg.model.extended(context)})
        model = Transformer(cfg.model)
        model.load_state_dict(state)
        tokenizer = record.own_tokenizer()
    except Exception as error:  # a record made by hand fails in many ways
        raise _unfit(found, error) from None
    return model.eval(), cfg, tokenizer
