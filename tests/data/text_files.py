"""Text corpora in files: their configurations, their names, and files written for them."""

import gzip
from pathlib import Path
from typing import Any

from mla_lm.config import DataConfig
from mla_lm.data.corpora import open_corpus
from tests.data.conftest import corpus_config, keys_of

LONG = 20_000  # characters, several documents
TWELVE = [f"{index:02}.txt" for index in range(12)]


def text(path: Path, **keys: Any) -> DataConfig:
    return corpus_config("text", path=path, **keys)


def jsonl(path: Path, **keys: Any) -> DataConfig:
    return corpus_config("jsonl", path=path, **keys)


def names(cfg: DataConfig) -> list[str]:
    return [key.decode() for key in keys_of(cfg)]


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def source(path: Path) -> dict[str, Any]:
    return open_corpus(text(path)).source
