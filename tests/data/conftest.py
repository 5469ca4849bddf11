"""Small text corpora, and the `DataConfig` that names them."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from mla_lm.config import DataConfig, TokenizerConfig
from mla_lm.data import Tokenizer

WORDS = ["def", "return", "self", "value", "x", "y", "naïve", "終", "=", "(", ")", ":", "\t", ""]


def some_text(n_words: int, *, seed: int) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) + "\n" * (rng.random() < 0.15) for _ in range(n_words))


def write_folder(folder: Path, *, n_documents: int = 12) -> Path:
    folder.mkdir(parents=True)
    for index in range(n_documents):
        (folder / f"{index:02}.txt").write_text(some_text(80 + 7 * index, seed=index))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "text")


@pytest.fixture
def data_config(tmp_path: Path) -> Callable[..., DataConfig]:
    """`data_config(path, ...)`, with the cache in this test's own folder."""

    def make(
        path: Path | str | None, *, vocab_size: int = 300, val_fraction: float = 0.2
    ) -> DataConfig:
        return DataConfig(
            kind="text" if path else "stdlib",
            path=str(path) if path else None,
            val_fraction=val_fraction,
            tokenizer=TokenizerConfig(vocab_size=vocab_size),
            cache_dir=str(tmp_path / "cache"),
            seq_len=32,
            batch_size=4,
        )

    return make


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([some_text(2000, seed=0)], vocab_size=300)
