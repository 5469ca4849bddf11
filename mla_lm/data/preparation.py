"""Prepare a corpus once: text to token files, in bounded memory, one process at a time.

1. find the files, and the folder in the cache that belongs to them and to the settings
2. read the start of the corpus: choose the train/validation split, which documents are too long to
   be on one side of it, and train the tokenizer
3. cut every document into pieces and encode them, `end_of_text` before each document
4. write a block of pieces as one shard per split, then count it in the manifest, so that an
   interrupted preparation resumes after the last counted block
5. rename the folder into place

Unfinished work lies in a folder of its user, so that in a cache of several users nobody writes into
what another has placed there.
"""

import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
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
    dtype_of,
    open_prepared,
    sha256,
    shard_path,
    write_manifest,
)
from mla_lm.data.split import Piece, choose_split, cut_above, pieces_of, with_parts
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError
from mla_lm.files import digest, mark, remove_temporaries, replacing, write_text

BLOCK = 2**15  # pieces per shard, of some 2 kB where documents are long
BATCH = 512  # pieces encoded in parallel
VERSION = 5
NOT_IN_KEY = {"path", "val_path", "cache_dir", "verify", "max_row_bytes"} | {
    "seq_len",
    "batch_size",
    "mask_documents",
}


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
    folder = Path(cfg.cache_dir) / f"{cfg.kind}-{sha256(settings)[:16]}"
    if listed == {} and (cfg.verify == "full" or not folder.exists()):
        raise _not_asked(cfg, "a data set of the hub")
    try:
        if not folder.exists():
            unfinished = _workplace(folder.parent) / folder.name
            with _locked(unfinished):
                if not folder.exists():
                    _prepare(cfg, corpus, settings, unfinished, existing)
                    _publish(unfinished, folder)
        data = open_prepared(folder, verify=cfg.verify)
        if cfg.verify == "full":  # names, sizes and times of files do not show every change
            found = extend_digest(hashlib.sha256(), _stream(corpus, data.manifest))
            if found != data.manifest["corpus"]:
                raise UserError(f"{corpus.name}: not the text that {folder} holds; delete {folder}")
        return data
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror}") from None


def _not_asked(cfg: DataConfig, what: str) -> UserError:
    words = " ".join(f"data.{key}={value}" for key, value in cfg.named.items())
    hint = f"to read it, name it yourself: data={cfg.kind} {words}"
    return UserError(f"{words}: named by the checkpoint, and {what}; {hint}")


def _workplace(cache: Path) -> Path:
    """The folder of this user's unfinished work; UserError where another has made it."""
    place = cache / f".unfinished-{os.getuid()}"
    cache.mkdir(parents=True, exist_ok=True)
    place.mkdir(mode=0o700, exist_ok=True)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UserError(f"{place}: a link, or of another user; set another data.cache_dir")
    return place


def _publish(unfinished: Path, folder: Path) -> None:
    """Move a finished corpus into the cache, where another user may have put the same."""
    mark(unfinished)
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(unfinished)


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
    unfinished: Path,
    existing: Tokenizer | None,
) -> None:
    try:
        _, _, tokenizer, manifest = open_prepared(unfinished, verify="full")
        remove_temporaries(unfinished)
        print(f"preparing {corpus.name}, resuming after piece {manifest['pieces']}", flush=True)
    except UserError:  # nothing to resume, or damaged
        print(f"preparing {corpus.name}: split and tokenizer", flush=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        above = cut_above(cfg, corpus)
        threshold, tokenizer = choose_split(cfg, with_parts(corpus, above), tokenizer=existing)
        write_text(unfinished / TOKENIZER, tokenizer.json)
        manifest = {
            "settings": settings,
            "name": corpus.name,
            "dtype": dtype_of(tokenizer),
            "vocab_size": tokenizer.vocab_size,
            "tokenizer_sha256": sha256(tokenizer.json),
            "threshold": threshold,
            "cut_above": above,
            "pieces": 0,
            "corpus": hashlib.sha256().hexdigest(),
            "empty_documents": 0,
            **{s: {"documents": 0, "tokens": 0, "bytes": 0, "shards": []} for s in SPLITS},
        }
        write_manifest(unfinished, manifest)
    _encode(corpus, tokenizer, manifest, unfinished)
    if corpus.val is None:
        _require_balance(manifest, cfg.val_fraction)
    elif manifest["val"]["documents"] == 0:
        key = "val_path" if getattr(cfg, "val_path", None) else "val_split"
        raise UserError(f"data.{key}={getattr(cfg, key)}: no text for validation")


def _require_balance(manifest: dict[str, Any], val_fraction: float) -> None:
    """UserError where short or equal documents leave less than half of its share to training."""
    train, val = (manifest[split]["bytes"] for split in SPLITS)
    if train < (1 - val_fraction) / 2 * (train + val):
        raise UserError(
            f"{manifest['name']}: too few different documents for data.val_fraction={val_fraction}:"
            f" {train:,} bytes to train on, {val:,} to validate on; set data.val_path"
        )


def _encode(corpus: Corpus, tokenizer: Tokenizer, manifest: dict[str, Any], folder: Path) -> None:
    """Encode what `manifest` does not count yet into shards in `folder`, and count it."""
    stream = _stream(corpus, manifest)
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
                path = shard_path(folder, split, len(counts["shards"]))
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


def _stream(corpus: Corpus, manifest: dict[str, Any]) -> Iterator[Piece]:
    """The pieces of all documents, split as `manifest` says."""
    return pieces_of(with_parts(corpus, manifest["cut_above"]), manifest["threshold"])


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
