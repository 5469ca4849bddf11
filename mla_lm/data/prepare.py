"""Prepare a corpus once: text to token files, in bounded memory, one process at a time.

1. find the files, and the folder in the cache that belongs to them and to the settings
2. read the start of the corpus: choose the train/validation split, train the tokenizer
3. cut every document into pieces and encode them, `end_of_text` before each document
4. write shards and the manifest of what is finished, from which an interrupted preparation resumes
5. rename the folder into place
"""

import hashlib
import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mla_lm.config import DataConfig
from mla_lm.data.corpora import Corpus, open_corpus
from mla_lm.data.encode import encode, extend_digest, pieces_of
from mla_lm.data.prepared import (
    SPLITS,
    TOKENIZER,
    PreparedData,
    open_prepared,
    sha256,
    write_manifest,
)
from mla_lm.data.split import choose_split
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError
from mla_lm.files import remove_temporaries, replacing

VERSION = 4
NOT_IN_KEY = {"path", "val_path", "cache_dir", "verify", "seq_len", "batch_size", "mask_documents"}


def prepare(cfg: DataConfig, *, tokenizer: Tokenizer | None = None) -> PreparedData:
    """Open the prepared corpus of `cfg`, preparing it first where it is missing.

    `tokenizer` is the one of a checkpoint, used instead of the file of a pretrained one.
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
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _locked(folder):
                if not folder.exists():
                    _prepare(cfg, corpus, settings, folder, existing)
        data = open_prepared(folder, verify=cfg.verify)
        if cfg.verify == "full":  # names, sizes and times of files do not show every change
            found = extend_digest(hashlib.sha256(), pieces_of(corpus, data.manifest["threshold"]))
            if found != data.manifest["corpus"]:
                raise UserError(f"{corpus.name}: not the text that {folder} holds; delete {folder}")
        return data
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror}") from None


def _locked(folder: Path) -> AbstractContextManager[object]:
    """The lock of a folder; a killed process loses it."""
    lock = FileLock(f"{folder}.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that prepares {folder}", flush=True)
        return lock.acquire()


def _prepare(
    cfg: DataConfig,
    corpus: Corpus,
    settings: dict[str, Any],
    folder: Path,
    existing: Tokenizer | None,
) -> None:
    unfinished = folder.with_name(f"{folder.name}.tmp")
    try:
        _, _, tokenizer, manifest = open_prepared(unfinished, verify="full")
        remove_temporaries(unfinished)
        print(f"preparing {corpus.name}, resuming behind piece {manifest['pieces']}", flush=True)
    except UserError:  # nothing to resume, or damaged
        print(f"preparing {corpus.name}", flush=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        threshold, tokenizer = choose_split(cfg, corpus, tokenizer=existing)
        with replacing(unfinished / TOKENIZER) as temporary:
            temporary.write_text(tokenizer.json, encoding="utf-8")
        manifest = {
            "settings": settings,
            "name": corpus.name,
            "dtype": "uint16" if tokenizer.vocab_size <= 2**16 else "uint32",
            "vocab_size": tokenizer.vocab_size,
            "tokenizer_sha256": sha256(tokenizer.json),
            "threshold": threshold,
            "pieces": 0,
            "corpus": hashlib.sha256().hexdigest(),
            "empty_documents": 0,
            **{s: {"documents": 0, "tokens": 0, "bytes": 0, "shards": []} for s in SPLITS},
        }
        write_manifest(unfinished, manifest)
    encode(corpus, tokenizer, manifest, unfinished)
    if manifest["val"]["documents"] == 0:
        raise UserError(f"{corpus.name}: no validation text")
    unfinished.rename(folder)
