"""Small text corpora, and the `DataConfig` that names them."""

import json
import random
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mla_lm import load_config
from mla_lm.config import DataConfig
from mla_lm.data import PreparedData, Tokenizer, encoder, prepare
from mla_lm.data.corpora import open_corpus
from mla_lm.errors import UserError

MakeConfig = Callable[..., DataConfig]
END_OF_TEXT = "<|endoftext|>"
WORDS = ["def", "return", "self", "value", "x", "y", "naïve", "終", "=", "(", ")", ":", "\t", ""]
MANIFEST_KEYS = (
    *("settings", "name", "dtype", "vocab_size", "tokenizer_sha256", "corpus", "threshold"),
    *("empty_documents", "train", "val", "bytes_per_token", "python", "created", "seconds"),
)
N_ROWS = 150
AT_ONCE, EVERY = 2_000, 10_000  # characters: some 55 batches of `many_rows`, saved every five


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
def data_config(tmp_path: Path) -> MakeConfig:
    """`data_config(path, **keys)`: a corpus with its cache in this test's own folder.

    `path` is None for the standard library; `__` in a key stands for a dot.
    """

    def make(path: Path | str | None = None, kind: str | None = None, **keys: Any) -> DataConfig:
        words = ["model=nano", f"data={kind or ('text' if path else 'stdlib')}"]
        if "tokenizer" in keys:
            words.append(f"data/tokenizer={keys.pop('tokenizer')}")
        elif kind != "synthetic":
            words.append("data.tokenizer.vocab_size=300")
        values = {"val_fraction": 0.2, "cache_dir": tmp_path / "cache", "seq_len": 32} | keys
        if path:
            values["path"] = path
        for key, value in values.items():
            quoted = f"'{value}'" if isinstance(value, str | Path) else value
            words.append(f"data.{key.replace('__', '.')}={quoted}")
        return load_config(words).data

    return make


@cache
def _any_config(kind: str) -> DataConfig:
    unset = {"hub": ["data.name=x"], "stdlib": [], "synthetic": []}
    return load_config(["model=nano", f"data={kind}", *unset.get(kind, ["data.path=x"])]).data


def corpus_config(kind: str, **keys: Any) -> DataConfig:
    """What `load_config` gives for `data=kind` and these keys, without composing it each time."""
    cfg = _any_config(kind)
    values = {key: str(value) if isinstance(value, Path) else value for key, value in keys.items()}
    return type(cfg).model_validate(cfg.model_dump() | values)


def texts_of(cfg: DataConfig) -> list[str]:
    """The documents to train on."""
    return ["".join(document.parts) for document in open_corpus(cfg).train()]


def keys_of(cfg: DataConfig) -> list[bytes]:
    return [document.key for document in open_corpus(cfg).train()]


def refusal(cfg: DataConfig) -> str:
    """The one line that is said instead of reading the corpus."""
    with pytest.raises(UserError) as caught:
        texts_of(cfg)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([some_text(2000, seed=0)], vocab_size=300, end_of_text=END_OF_TEXT)


def write_rows(path: Path, texts: Iterable[str | None]) -> Path:
    """JSON lines with the texts in `text`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def prepared_folder(cfg: DataConfig) -> Path:
    """The only finished folder in the cache."""
    finished = (p for p in Path(cfg.cache_dir).iterdir() if p.is_dir() and p.suffix != ".tmp")
    (only,) = finished
    return only


def lasting(manifest: dict[str, Any]) -> dict[str, Any]:
    """What two preparations of the same text have in common."""
    return {key: value for key, value in manifest.items() if key not in ("created", "seconds")}


def tokenizer_keys(kind: str, *, vocab_size: int = 300) -> dict[str, Any]:
    """`data.tokenizer` of a tokenizer that is trained, or of one token a byte."""
    vocab_size = 257 if kind == "bytes" else vocab_size
    return {"kind": kind, "vocab_size": vocab_size, "end_of_text": END_OF_TEXT, "path": None}


@pytest.fixture
def quick_config(tmp_path: Path) -> MakeConfig:
    """As `data_config`, for keys whose way through Hydra is of no interest."""

    def make(path: Path, kind: str = "text", tokenizer: str = "bpe", **keys: Any) -> DataConfig:
        values = {"val_fraction": 0.2, "cache_dir": tmp_path / "cache", "seq_len": 32} | keys
        return corpus_config(kind, path=path, tokenizer=tokenizer_keys(tokenizer), **values)

    return make


def updated(cfg: DataConfig, **keys: Any) -> DataConfig:
    """Another configuration of the same kind; paths become text."""
    update = {key: str(v) if isinstance(v, Path) else v for key, v in keys.items()}
    return cfg.model_copy(update=update)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def many_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSON lines of 120 kB of text, every fifth of several pieces."""
    texts = [some_text(60 if seed % 5 else 700, seed=seed) for seed in range(N_ROWS)]
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", texts)


def config_of_rows(rows: Path, cache: Path) -> DataConfig:
    keys = {"path": rows, "cache_dir": cache, "val_fraction": 0.1}
    return corpus_config("jsonl", tokenizer=tokenizer_keys("bpe"), **keys)


@pytest.fixture
def cfg(many_rows: Path, tmp_path: Path) -> DataConfig:
    """`many_rows` with a cache in this test's own folder."""
    return config_of_rows(many_rows, tmp_path / "cache")


@pytest.fixture(scope="session")
def undisturbed(many_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """What preparing `many_rows` gives where nothing goes wrong."""
    return prepare(config_of_rows(many_rows, tmp_path_factory.mktemp("undisturbed")))


@pytest.fixture
def often_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "ENCODED_AT_ONCE", AT_ONCE)
    monkeypatch.setattr(encoder, "SAVED_EVERY", EVERY)
