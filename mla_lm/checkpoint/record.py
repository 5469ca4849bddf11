"""What a checkpoint says of its run, besides tensors: configuration, tokenizer, data, machine.

The project adds this record to Lightning's checkpoint; this file knows nothing of Lightning.
"""

import json
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from mla_lm.config import RunConfig
from mla_lm.config.secret import public
from mla_lm.data.prepared import sha256
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError
from mla_lm.files import remove_temporaries, write_text

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
    data: dict[str, Any]  # the manifest of the prepared corpus; of an import, its source
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


def write_run_files(run_dir: Path, cfg: RunConfig, record: Record) -> dict[str, Any]:
    """Beside the checkpoints, for people: configuration, command, versions, corpus, tokenizer.

    Returns the configuration as it was written, without secrets.
    """
    shown: dict[str, Any] = public(cfg.model_dump(mode="json"))
    ran = {"command": record.command, "environment": record.environment}
    files = {
        CONFIG_FILE: json.dumps(shown, indent=2) + "\n",
        "run.json": json.dumps(ran, indent=2) + "\n",
        "data.json": json.dumps(public(record.data), indent=2) + "\n",
        "tokenizer.json": record.tokenizer,
    }
    remove_temporaries(run_dir)
    for name, text in files.items():
        write_text(run_dir / name, text)
    return shown


def require_corpus(path: str | Path, record: Record, manifest: dict[str, Any]) -> None:
    """Refuse a prepared corpus whose text, split or tokenizer `path` was not trained with.

    Of an imported model nobody knows the text, so any will do.
    """
    trained = {**manifest, "tokenizer_sha256": sha256(record.tokenizer), **record.data}
    for key in OF_CORPUS:
        if trained.get(key) != manifest[key]:
            raise UserError(
                f"{path}: trained with data {key}={trained.get(key)}, here it is {manifest[key]}"
            )
