"""Prepare a corpus once: text to token files, in bounded memory, resumable, one process at a time.

1. find the files, and the folder in the cache that belongs to them and to the settings
2. read a head of the corpus: which hashes are held out, and what the tokenizer learns from
3. encode every document in pieces, `end_of_text` before it, into the shards of its split
4. now and then bring all to the disk and note how far it got; a killed process goes on from there
5. write the manifest and rename the folder into place
"""

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mla_lm.config import DataConfig
from mla_lm.data.corpora import Corpus, Document, open_corpus
from mla_lm.data.encoder import STATE, Encoder, State, chained, digest_of
from mla_lm.data.prepared import MANIFEST, PreparedData, open_prepared, sha256, write_manifest
from mla_lm.data.shards import Shard, write
from mla_lm.data.split import place, read_head
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError

VERSION = 2
NOT_IN_KEY = {"path", "val_path", "cache_dir", "verify", "seq_len", "batch_size", "mask_documents"}


def prepare(cfg: DataConfig, *, tokenizer: Tokenizer | None = None) -> PreparedData:
    """Open the prepared corpus of `cfg`, preparing it first where it is missing.

    `tokenizer` is the one of a checkpoint, which takes the place of a pretrained one's file.
    Raises UserError naming file and place of what cannot be read, written or trusted.
    """
    corpus = open_corpus(cfg)
    settings = cfg.model_dump(mode="json", exclude=NOT_IN_KEY)
    settings |= {"version": VERSION, "source": corpus.source}
    existing = None
    if cfg.tokenizer.kind == "pretrained":
        existing = tokenizer or Tokenizer.pretrained(cfg.tokenizer)
        settings["tokenizer_json"] = sha256(existing.json)
    folder = Path(os.path.expanduser(cfg.cache_dir)) / f"{cfg.kind}-{sha256(settings)[:16]}"
    try:
        if not (folder / MANIFEST).exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _alone(folder):
                if not (folder / MANIFEST).exists():
                    _prepare(cfg, corpus, settings, folder, existing)
        data = open_prepared(folder, verify=cfg.verify)
        if cfg.verify == "full":
            _verify_text(corpus, data.manifest, folder)
        return data
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror}") from None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; a killed process loses it."""
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that prepares {folder}", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _prepare(
    cfg: DataConfig,
    corpus: Corpus,
    settings: dict[str, Any],
    folder: Path,
    existing: Tokenizer | None,
) -> None:
    if folder.exists():
        raise UserError(f"{folder / MANIFEST}: missing; delete {folder}")
    started = time.time()
    unfinished = folder.with_name(f"{folder.name}.tmp")
    state, tokenizer = _begin(cfg, corpus, unfinished, existing)
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    encoder = Encoder(unfinished, tokenizer, state, dtype)
    with _progress(corpus, state) as show:
        for document, split in _remaining(corpus, state, unfinished):
            encoder.add(document, split)
            show()
    content = {
        "settings": settings,
        "name": corpus.name,
        "dtype": dtype.name,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_sha256": sha256(tokenizer.json),
        **_counted(corpus, state, encoder.close()),
        "python": platform.python_version(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": round(time.time() - started, 1),
    }
    write_manifest(unfinished, content)
    for note in unfinished.glob(f"{STATE}*"):
        note.unlink()
    unfinished.rename(folder)


def _counted(corpus: Corpus, state: State, shards: dict[str, list[Shard]]) -> dict[str, Any]:
    """What the manifest says of the text; both splits must have some."""
    content: dict[str, Any] = {
        "corpus": state.digest,
        "threshold": state.threshold,
        "empty_documents": state.empty,
    }
    for split, purpose in (("train", "train on"), ("val", "validate on")):
        counts = getattr(state, split)
        if counts.documents == 0:
            raise UserError(f"{corpus.name}: no text to {purpose}")
        files = [shard._asdict() | {"path": shard.path.name} for shard in shards[split]]
        content[split] = {**vars(counts), "shards": files}
    n_tokens = state.train.tokens + state.val.tokens
    return content | {"bytes_per_token": round(state.bytes / n_tokens, 4)}


def _begin(
    cfg: DataConfig, corpus: Corpus, unfinished: Path, existing: Tokenizer | None
) -> tuple[State, Tokenizer]:
    """Where an interrupted preparation stopped, or a fresh start."""
    tokenizer_file = unfinished / "tokenizer.json"
    try:
        state = State.load(unfinished)
        content = tokenizer_file.read_text(encoding="utf-8")
        tokenizer = Tokenizer(content, end_of_text=cfg.tokenizer.end_of_text)
    except (OSError, ValueError, TypeError, KeyError):
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        print(f"preparing {corpus.name}", flush=True)
        threshold, tokenizer = read_head(cfg, corpus, tokenizer=existing)
        state = State(threshold)
        write(tokenizer_file, tokenizer.json)
        state.save(unfinished)
    else:
        print(f"preparing {corpus.name}, going on behind document {state.documents}", flush=True)
    return state, tokenizer


def _remaining(corpus: Corpus, state: State, unfinished: Path) -> Iterator[tuple[Document, str]]:
    """The documents behind those already encoded, each with its split.

    Those already encoded are read again, and must be the same.
    """
    labelled, digest = _labelled(corpus, state.threshold), ""
    for document, split in islice(labelled, state.documents):
        digest = chained(digest, split, digest_of(document))
    if digest != state.digest:
        raise UserError(f"{corpus.name}: changed since {unfinished} was begun; delete that")
    yield from labelled


def _verify_text(corpus: Corpus, manifest: dict[str, Any], folder: Path) -> None:
    """Read the whole corpus again: names, sizes and times do not show every change."""
    digest = ""
    for document, split in _labelled(corpus, manifest["threshold"]):
        digest = chained(digest, split, digest_of(document))
    if digest != manifest["corpus"]:
        raise UserError(f"{corpus.name}: its text is not what {folder} holds; delete {folder}")


def _labelled(corpus: Corpus, threshold: int) -> Iterator[tuple[Document, str]]:
    for document in corpus.train():
        yield document, "val" if place(document.key) < threshold else "train"
    for document in corpus.val() if corpus.val else ():
        yield document, "val"


@contextmanager
def _progress(corpus: Corpus, state: State) -> Iterator[Callable[[], None]]:
    """A bar with speed and time left, advanced by calling; lines where there is no terminal."""
    before, started, last = state.bytes, time.monotonic(), 0.0
    columns = TextColumn("tokenizing"), BarColumn(), TextColumn("{task.description}")
    terminal = sys.stdout.isatty()
    with Progress(*columns, TimeRemainingColumn(), transient=True, disable=not terminal) as bar:
        task = bar.add_task("", total=corpus.n_bytes, completed=before)

        def show() -> None:
            nonlocal last
            seconds = time.monotonic() - started
            if seconds - last < (0.2 if terminal else 10):
                return
            last, speed = seconds, (state.bytes - before) / seconds
            text = f"{state.bytes / 1e6:,.0f} MB  {speed / 1e6:.2f} MB/s"
            bar.update(task, completed=state.bytes, description=text)
            if not terminal:
                left = max(0, (corpus.n_bytes or 0) - state.bytes) / max(1, speed) / 60
                print(f"tokenizing  {text}" + f"  {left:.1f} min left" * (left > 0), flush=True)

        yield show
