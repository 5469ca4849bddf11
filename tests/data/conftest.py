"""Small text corpora, the `DataConfig` that names them, and what must come of them."""

import gzip
import hashlib
import json
import random
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mla_lm import load_config
from mla_lm.config import DataConfig
from mla_lm.data import PreparedData, Tokenizer
from mla_lm.data.corpora import open_corpus
from tests.conftest import one_line

MakeConfig = Callable[..., DataConfig]
END_OF_TEXT = "<|endoftext|>"
WORDS = ["def", "return", "self", "value", "x", "y", "naïve", "終", "=", "(", ")", ":", "\t", ""]
TWELVE = [f"{index:02}.txt" for index in range(12)]
SPLITS = ("train", "val")


def some_text(n_words: int, *, seed: int) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) + "\n" * (rng.random() < 0.15) for _ in range(n_words))


def write_folder(folder: Path, *, n_documents: int = 12) -> Path:
    folder.mkdir(parents=True)
    for index in range(n_documents):
        (folder / f"{index:02}.txt").write_text(some_text(80 + 7 * index, seed=index))
    return folder


def write_rows(path: Path, texts: Iterable[str | None]) -> Path:
    """JSON lines with the texts in `text`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "text")


@cache
def _any_config(kind: str) -> DataConfig:
    unset = {"hub": ["data.name=x"], "stdlib": [], "synthetic": []}
    return load_config(["model=nano", f"data={kind}", *unset.get(kind, ["data.path=x"])]).data


def corpus_config(kind: str, **keys: Any) -> DataConfig:
    """What `load_config` gives for `data=kind` and these keys, without composing it each time."""
    cfg = _any_config(kind)
    values = {key: str(value) if isinstance(value, Path) else value for key, value in keys.items()}
    return type(cfg).model_validate(cfg.model_dump() | values)


def tokenizer_keys(kind: str, *, vocab_size: int = 300, path: Path | None = None) -> dict[str, Any]:
    """`data.tokenizer` of a tokenizer that is trained, of one token per byte, or of a file."""
    keys = {"kind": kind, "vocab_size": 257 if kind == "bytes" else vocab_size}
    return keys | {"end_of_text": END_OF_TEXT, "path": None if path is None else str(path)}


@pytest.fixture
def config(tmp_path: Path) -> MakeConfig:
    """`config(path, kind, tokenizer, **keys)`: a corpus with its cache in this test's folder."""

    def make(path: Path, kind: str = "text", tokenizer: Any = "bpe", **keys: Any) -> DataConfig:
        values = {"val_fraction": 0.2, "cache_dir": tmp_path / "cache", "seq_len": 32} | keys
        learned = tokenizer_keys(tokenizer) if isinstance(tokenizer, str) else tokenizer
        return corpus_config(kind, path=path, tokenizer=learned, **values)

    return make


def updated(cfg: DataConfig, **keys: Any) -> DataConfig:
    """Another configuration of the same kind; paths become text."""
    update = {key: str(v) if isinstance(v, Path) else v for key, v in keys.items()}
    return cfg.model_copy(update=update)


def texts_of(cfg: DataConfig) -> list[str]:
    """The documents to train on."""
    return ["".join(document.parts) for document in open_corpus(cfg).train()]


def keys_of(cfg: DataConfig) -> list[bytes]:
    return [document.key for document in open_corpus(cfg).train()]


def refusal(cfg: DataConfig) -> str:
    """The one line that is said instead of reading the corpus."""
    return one_line(lambda: texts_of(cfg))


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([some_text(2000, seed=0)], vocab_size=300, end_of_text=END_OF_TEXT)


def prepared_folder(cfg: DataConfig) -> Path:
    """The only finished folder in the cache."""
    (only,) = Path(cfg.cache_dir).glob("[!.]*")
    return only


def lasting(manifest: dict[str, Any]) -> dict[str, Any]:
    """What two preparations of the same text have in common."""
    return {k: v for k, v in manifest.items() if k != "settings"}


def hashed(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def file_texts(folder: Path) -> dict[str, str]:
    """The documents of a folder by their keys."""
    return {p.name: p.read_text() for p in sorted(folder.iterdir())}


def split_of(texts: dict[str, str], fraction: float) -> dict[str, list[str]]:
    """What each split must hold, in order; the keys are the keys of the documents."""
    held_out = {k for k in texts if hashed(k) < fraction * 2**64} or {min(texts, key=hashed)}
    return {
        "train": [text for key, text in texts.items() if key not in held_out],
        "val": [text for key, text in texts.items() if key in held_out],
    }


def documents(data: PreparedData, split: str) -> list[str]:
    """The documents that the ids of a split hold."""
    ids = getattr(data, split)[:]
    starts = np.flatnonzero(ids == data.tokenizer.end_of_text)
    assert starts[0] == 0
    return [data.tokenizer.decode(part[1:].tolist()) for part in np.split(ids, starts[1:])]
