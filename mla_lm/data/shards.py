"""A corpus prepared once: tokenizer, memory-mapped token files and a manifest.

1. scan the corpus: digest and split   2. look for a folder of that digest and these settings
3. train the tokenizer on the training split   4. encode both splits, `END_OF_TEXT` before each
document   5. write the manifest and rename the folder into place.
"""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from mla_lm.config import DataConfig
from mla_lm.data.corpora import Document, Scan, documents, scan
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError

VERSION = 1
ENCODE_BATCH = 64  # documents
Loaded = TypeVar("Loaded")


class PreparedData(NamedTuple):
    """Token streams (n,) of both splits, the tokenizer, and where they came from."""

    train: NDArray[np.unsignedinteger]
    val: NDArray[np.unsignedinteger]
    tokenizer: Tokenizer
    manifest: dict[str, Any]


def prepare(cfg: DataConfig) -> PreparedData:
    """Open the prepared corpus of `cfg`, preparing it first where it is missing.

    Raises UserError naming the file when text cannot be read or a prepared file is damaged.
    """
    corpus = scan(cfg)
    settings = {
        "version": VERSION,
        "corpus": corpus.digest,
        "val_fraction": cfg.val_fraction,
        "tokenizer": cfg.tokenizer.model_dump(),
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(cfg.cache_dir) / f"{cfg.kind}-{key}"
    if not (folder / "manifest.json").exists():
        _prepare(cfg, corpus, settings, folder)
    return open_prepared(folder)


def open_prepared(folder: Path) -> PreparedData:
    """Map a prepared folder; raises UserError when a file is missing, damaged or of wrong size."""
    manifest = _load(folder / "manifest.json", json.loads)
    tokenizer = _load(folder / "tokenizer.json", Tokenizer)
    try:
        dtype = np.dtype(manifest["dtype"])
        sizes = {split: manifest[split]["tokens"] * dtype.itemsize for split in ("train", "val")}
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / 'manifest.json'}: {error!r}; delete {folder}") from None
    streams = {}
    for split, expected in sizes.items():
        path = folder / f"{split}.bin"
        found = path.stat().st_size if path.exists() else 0
        if found != expected:
            raise UserError(f"{path}: {found} bytes where {expected} belong; delete {folder}")
        streams[split] = np.memmap(path, dtype=dtype, mode="r")
    return PreparedData(streams["train"], streams["val"], tokenizer, manifest)


def _load(path: Path, parse: Callable[[str], Loaded]) -> Loaded:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except Exception as error:  # the parsers of JSON and of `tokenizers` fail in many ways
        raise UserError(f"{path}: {type(error).__name__}; delete {path.parent}") from None


def _prepare(cfg: DataConfig, corpus: Scan, settings: dict[str, Any], folder: Path) -> None:
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    print(f"preparing {corpus.n_documents} documents, {corpus.n_bytes / 1e6:.1f} MB")

    training_texts = (d.text for d in documents(cfg) if d.name not in corpus.validation)
    tokenizer = Tokenizer.train(training_texts, vocab_size=cfg.tokenizer.vocab_size)
    (unfinished / "tokenizer.json").write_text(tokenizer.json)
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    manifest: dict[str, Any] = {
        **settings,
        "kind": cfg.kind,
        "path": cfg.path,
        "python": platform.python_version(),
        "dtype": dtype.name,
        "vocab_size": tokenizer.vocab_size,
    }
    counts = {split: {"documents": 0, "tokens": 0, "bytes": 0} for split in ("train", "val")}
    with (unfinished / "train.bin").open("wb") as train, (unfinished / "val.bin").open("wb") as val:
        for document, ids in _encoded(cfg, tokenizer, corpus.n_documents):
            split, file = ("val", val) if document.name in corpus.validation else ("train", train)
            file.write(np.array([tokenizer.end_of_text, *ids], dtype=dtype).tobytes())
            counts[split]["documents"] += 1
            counts[split]["tokens"] += 1 + len(ids)
            counts[split]["bytes"] += len(document.text.encode())
    manifest |= counts
    (unfinished / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        shutil.rmtree(unfinished)  # another process has prepared the same corpus


def _encoded(
    cfg: DataConfig, tokenizer: Tokenizer, total: int
) -> Iterator[tuple[Document, list[int]]]:
    """Every document with its ids, under a progress bar."""
    corpus = iter(track(documents(cfg), "tokenizing", total=total, transient=True))
    while batch := list(islice(corpus, ENCODE_BATCH)):
        yield from zip(batch, tokenizer.encode_batch([d.text for d in batch]), strict=True)
