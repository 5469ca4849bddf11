"""Prepare a corpus once: text to token files, in bounded memory, one process at a time.

1. find the files, and the folder in the cache that belongs to them and to the settings
2. read the start of the corpus: choose the train/validation split, train the tokenizer
3. cut every document into pieces and encode them, `end_of_text` before each document
4. write a block of pieces as one shard per split, then count it in the manifest, so that an
   interrupted preparation resumes after the last counted block
5. rename the folder into place
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from mla_lm.config import DataConfig
from mla_lm.data.corpora import Corpus, open_corpus
from mla_lm.data.prepared import (
    SPLITS,
    TOKENIZER,
    PreparedData,
    open_prepared,
    sha256,
    write_manifest,
)
from mla_lm.data.split import Piece, choose_split, pieces_of
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError
from mla_lm.files import digest, remove_temporaries, replacing, write_text

BLOCK = 2**15  # pieces per shard, of some 2 kB where documents are long
BATCH = 512  # pieces encoded in parallel
VERSION = 4
NOT_IN_KEY = {"path", "val_path", "cache_dir", "verify", "seq_len", "batch_size", "mask_documents"}


def prepare(
    cfg: DataConfig,
    *,
    tokenizer: Tokenizer | None = None,
    listed: Mapping[str, Any] | None = None,
) -> PreparedData:
    """Open the prepared corpus of `cfg`, preparing it first where it is missing.

    `tokenizer` is the one of a checkpoint, used instead of the file of a pretrained one. `listed`
    is the `source` in the checkpoint that names the files or the data set, if that is not the user:
    files are read only where they are those, and nothing is fetched from the hub.
    Raises UserError naming file and place of what cannot be read, written or trusted.
    """
    corpus = open_corpus(cfg)
    if listed is not None and listed != corpus.source:
        raise _not_asked(cfg, "not what it lists by names, sizes and times of files")
    settings = cfg.model_dump(mode="json", exclude=NOT_IN_KEY)
    settings |= {"version": VERSION, "source": corpus.source}
    existing = None
    if cfg.tokenizer.kind == "pretrained":
        existing = tokenizer or Tokenizer.pretrained(cfg.tokenizer)
        settings["tokenizer_json"] = sha256(existing.json)
    folder = Path(os.path.expanduser(cfg.cache_dir)) / f"{cfg.kind}-{sha256(settings)[:16]}"
    if listed == {} and (cfg.verify == "full" or not folder.exists()):
        raise _not_asked(cfg, "a data set of the hub")
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


def _not_asked(cfg: DataConfig, what: str) -> UserError:
    words = " ".join(f"data.{key}={value}" for key, value in cfg.named.items())
    hint = f"to read it, name it yourself: data={cfg.kind} {words}"
    return UserError(f"{words}: named by the checkpoint, and {what}; {hint}")


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
        print(f"preparing {corpus.name}, resuming after piece {manifest['pieces']}", flush=True)
    except UserError:  # nothing to resume, or damaged
        print(f"preparing {corpus.name}", flush=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        threshold, tokenizer = choose_split(cfg, corpus, tokenizer=existing)
        write_text(unfinished / TOKENIZER, tokenizer.json)
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
    _encode(corpus, tokenizer, manifest, unfinished)
    if manifest["val"]["documents"] == 0:
        raise UserError(f"{corpus.name}: no validation text")
    unfinished.rename(folder)


def _encode(corpus: Corpus, tokenizer: Tokenizer, manifest: dict[str, Any], folder: Path) -> None:
    """Encode what `manifest` does not count yet into shards in `folder`, and count it."""
    stream = pieces_of(corpus, manifest["threshold"])
    running = hashlib.sha256()
    if extend_digest(running, islice(stream, manifest["pieces"])) != manifest["corpus"]:
        raise UserError(f"{corpus.name}: changed since {folder} was begun; delete {folder}")
    while block := list(islice(stream, BLOCK)):
        for split in SPLITS:
            mine = [piece for piece in block if piece[0] == split]
            counts, ids = manifest[split], _ids(mine, tokenizer, manifest["dtype"])
            counts["documents"] += sum(starts for _, starts, _ in mine)
            counts["tokens"] += len(ids)
            counts["bytes"] += sum(len(text.encode()) for *_, text in mine)
            if len(ids):
                path = folder / f"{split}-{len(counts['shards']):05}.bin"
                with replacing(path) as temporary:
                    temporary.write_bytes(ids.tobytes())
                shard = {"path": path.name, "tokens": len(ids), "sha256": digest(path)}
                counts["shards"].append(shard)
        manifest["pieces"] += len(block)
        manifest["corpus"] = extend_digest(running, block)
        manifest["empty_documents"] += sum(not text for *_, text in block)
        n_bytes, n_tokens = (sum(manifest[s][k] for s in SPLITS) for k in ("bytes", "tokens"))
        manifest["bytes_per_token"] = round(n_bytes / max(1, n_tokens), 4)
        write_manifest(folder, manifest)
        print(f"tokenizing  {n_bytes / 1e6:,.0f} MB", flush=True)


def _ids(pieces: list[Piece], tokenizer: Tokenizer, dtype: str) -> NDArray[Any]:
    """The ids of all pieces, joined; UserError where they do not stand for the same bytes."""
    found = [np.empty(0, dtype)]
    for first in range(0, len(pieces), BATCH):
        batch = pieces[first : first + BATCH]
        encoded = tokenizer.encode_batch([text for *_, text in batch])
        for (_, starts, text), ids in zip(batch, encoded, strict=True):
            if tokenizer.n_bytes(ids) != len(text.encode()):
                raise UserError(f"the tokenizer changes text: {tokenizer.difference(text)}")
            found.append(np.array([tokenizer.end_of_text] * starts + ids, dtype))
    return np.concatenate(found)


def extend_digest(running: "hashlib._Hash", found: Iterable[Piece]) -> str:
    """Add pieces to a running SHA-256 of a corpus; its value in hex digits."""
    for piece in found:
        running.update(repr(piece).encode())
    return running.hexdigest()
