"""Documents to token files: pieces to ids, ids to shards, and a manifest of what is finished.

A block is as many pieces as hold `BLOCK` characters. It becomes one shard for each split, then the
manifest counts it: whatever interrupts the work, finished blocks stay and the cut one is made
again.
"""

import hashlib
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress, TimeRemainingColumn, TransferSpeedColumn

from mla_lm.data.corpora import Corpus
from mla_lm.data.prepared import SPLITS, write_manifest
from mla_lm.data.shards import write_shard
from mla_lm.data.split import hash_position
from mla_lm.data.tokenizer import Tokenizer, pieces
from mla_lm.errors import UserError

BLOCK = 32 * 2**20  # characters
BATCH = 512  # pieces encoded in parallel


class Piece(NamedTuple):
    """Part of a document; the first has its hash position, and no text if the document has none."""

    split: str
    position: int | None
    text: str

    @property
    def starts(self) -> bool:
        """Whether a document that has text starts here."""
        return self.position is not None and bool(self.text)


def pieces_of(corpus: Corpus, threshold: int) -> Iterator[Piece]:
    """All documents in pieces, those below the threshold and those of `corpus.val` held out."""
    train = ((document, threshold) for document in corpus.train())
    val = ((document, 2**64) for document in (corpus.val() if corpus.val else ()))
    for document, limit in chain(train, val):
        position: int | None = hash_position(document.key)
        split = "val" if hash_position(document.key) < limit else "train"
        for text in pieces(document.parts):
            yield Piece(split, position, text)
            position = None
        if position is not None:
            yield Piece(split, position, "")


def extend_digest(digest: "hashlib._Hash", found: Iterable[Piece]) -> str:
    """Add pieces to a running SHA-256 of a corpus; its value in hex digits."""
    for piece in found:
        digest.update(repr(tuple(piece)).encode())
    return digest.hexdigest()


def encode(corpus: Corpus, tokenizer: Tokenizer, manifest: dict[str, Any], folder: Path) -> None:
    """Encode what `manifest` does not count yet into shards in `folder`, and count it."""
    stream = pieces_of(corpus, manifest["threshold"])
    digest = hashlib.sha256()
    if extend_digest(digest, islice(stream, manifest["pieces"])) != manifest["corpus"]:
        raise UserError(f"{corpus.name}: changed since {folder} was begun; delete {folder}")
    terminal = sys.stdout.isatty()
    columns = (*Progress.get_default_columns()[:2], TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not terminal) as bar:
        task = bar.add_task("tokenizing", total=corpus.n_bytes, completed=_n_bytes(manifest))
        for block in _blocks(stream):
            started = time.monotonic()
            ids: dict[str, list[NDArray[Any]]] = {split: [] for split in SPLITS}
            for start in range(0, len(block), BATCH):
                _encode_batch(block[start : start + BATCH], tokenizer, manifest, ids)
                bar.update(task, completed=_n_bytes(manifest))
            _store(ids, manifest, folder)
            manifest["pieces"] += len(block)
            manifest["corpus"] = extend_digest(digest, block)
            manifest["seconds"] = round(manifest["seconds"] + time.monotonic() - started, 2)
            write_manifest(folder, manifest)
            if not terminal:
                print(f"tokenizing  {_n_bytes(manifest) / 1e6:,.0f} MB", flush=True)


def _blocks(stream: Iterator[Piece]) -> Iterator[list[Piece]]:
    block, size = list[Piece](), 0
    for piece in stream:
        block.append(piece)
        size += len(piece.text)
        if size >= BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def _encode_batch(
    batch: list[Piece],
    tokenizer: Tokenizer,
    manifest: dict[str, Any],
    ids: dict[str, list[NDArray[Any]]],
) -> None:
    """Append the ids of each piece to those of its split, and count them."""
    encoded = tokenizer.encode_batch([piece.text for piece in batch])
    for piece, found in zip(batch, encoded, strict=True):
        n_bytes = len(piece.text.encode())
        if tokenizer.n_bytes(found) != n_bytes:
            raise UserError(f"the tokenizer changes text: {tokenizer.difference(piece.text)}")
        found = [tokenizer.end_of_text] * piece.starts + found
        ids[piece.split].append(np.array(found, dtype=manifest["dtype"]))
        counts = manifest[piece.split]
        counts["documents"] += piece.starts
        counts["tokens"] += len(found)
        counts["bytes"] += n_bytes
        manifest["empty_documents"] += not piece.text


def _store(ids: dict[str, list[NDArray[Any]]], manifest: dict[str, Any], folder: Path) -> None:
    """Write a shard for each split that has any tokens."""
    for split, found in ids.items():
        shards = manifest[split]["shards"]
        if sum(map(len, found)):
            shard = write_shard(folder / f"{split}-{len(shards):05}.bin", np.concatenate(found))
            shards.append(shard._asdict() | {"path": shard.path.name})
    n_tokens = sum(manifest[split]["tokens"] for split in SPLITS)
    manifest["bytes_per_token"] = round(_n_bytes(manifest) / max(1, n_tokens), 4)


def _n_bytes(manifest: dict[str, Any]) -> int:
    """Bytes of text encoded so far."""
    return sum(manifest[split]["bytes"] for split in SPLITS)
