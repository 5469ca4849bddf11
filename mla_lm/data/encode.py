"""Documents to token files: pieces to ids, ids to shards, and a manifest of what is finished.

A block of pieces becomes one shard for each split, then the manifest counts it: whatever interrupts
the work, finished blocks stay and the cut one is made again.
"""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mla_lm.data.corpora import Corpus
from mla_lm.data.prepared import SPLITS, write_manifest
from mla_lm.data.split import hash_position
from mla_lm.data.tokenizer import Tokenizer, pieces
from mla_lm.errors import UserError
from mla_lm.files import digest, replacing

BLOCK = 2**15  # pieces, of some 2 kB where documents are long
BATCH = 512  # pieces encoded in parallel


# Part of a document: its split, whether a document starts, and text. An empty document starts none.
Piece = tuple[str, bool, str]


def pieces_of(corpus: Corpus, threshold: int) -> Iterator[Piece]:
    """All documents in pieces, those below the threshold and those of `corpus.val` held out."""
    train = ((document, threshold) for document in corpus.train())
    val = ((document, 2**64) for document in (corpus.val() if corpus.val else ()))
    for document, limit in chain(train, val):
        split = "val" if hash_position(document.key) < limit else "train"
        starts = True
        for text in pieces(document.parts):
            yield split, starts, text
            starts = False
        if starts:
            yield split, False, ""


def extend_digest(running: "hashlib._Hash", found: Iterable[Piece]) -> str:
    """Add pieces to a running SHA-256 of a corpus; its value in hex digits."""
    for piece in found:
        running.update(repr(piece).encode())
    return running.hexdigest()


def encode(corpus: Corpus, tokenizer: Tokenizer, manifest: dict[str, Any], folder: Path) -> None:
    """Encode what `manifest` does not count yet into shards in `folder`, and count it."""
    stream = pieces_of(corpus, manifest["threshold"])
    running = hashlib.sha256()
    if extend_digest(running, islice(stream, manifest["pieces"])) != manifest["corpus"]:
        raise UserError(f"{corpus.name}: changed since {folder} was begun; delete {folder}")
    while block := list(islice(stream, BLOCK)):
        ids: dict[str, list[NDArray[Any]]] = {split: [] for split in SPLITS}
        for start in range(0, len(block), BATCH):
            _encode_batch(block[start : start + BATCH], tokenizer, manifest, ids)
        for split, found in ids.items():
            _write_shard(folder, split, found, manifest[split]["shards"])
        manifest["pieces"] += len(block)
        manifest["corpus"] = extend_digest(running, block)
        n_bytes, n_tokens = (sum(manifest[s][k] for s in SPLITS) for k in ("bytes", "tokens"))
        manifest["bytes_per_token"] = round(n_bytes / max(1, n_tokens), 4)
        write_manifest(folder, manifest)
        print(f"tokenizing  {n_bytes / 1e6:,.0f} MB", flush=True)


def _encode_batch(
    batch: list[Piece],
    tokenizer: Tokenizer,
    manifest: dict[str, Any],
    ids: dict[str, list[NDArray[Any]]],
) -> None:
    """Append the ids of each piece to those of its split, and count them."""
    encoded = tokenizer.encode_batch([text for _, _, text in batch])
    for (split, starts, text), found in zip(batch, encoded, strict=True):
        n_bytes = len(text.encode())
        if tokenizer.n_bytes(found) != n_bytes:
            raise UserError(f"the tokenizer changes text: {tokenizer.difference(text)}")
        found = [tokenizer.end_of_text] * starts + found
        ids[split].append(np.array(found, dtype=manifest["dtype"]))
        counts = manifest[split]
        counts["documents"] += starts
        counts["tokens"] += len(found)
        counts["bytes"] += n_bytes
        manifest["empty_documents"] += not text


def _write_shard(
    folder: Path, split: str, found: list[NDArray[Any]], shards: list[dict[str, Any]]
) -> None:
    """Write the ids of a block to a file that appears whole or not at all, where it has any."""
    if n_tokens := sum(map(len, found)):
        path = folder / f"{split}-{len(shards):05}.bin"
        with replacing(path) as temporary:
            temporary.write_bytes(np.concatenate(found).tobytes())
        shards.append({"path": path.name, "tokens": n_tokens, "sha256": digest(path)})
