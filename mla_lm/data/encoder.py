"""Documents to token files; what is written can be gone on with after a kill."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mla_lm.data.corpora import Document
from mla_lm.data.shards import Shard, ShardWriter, write
from mla_lm.data.tokenizer import Tokenizer, pieces
from mla_lm.errors import UserError

ENCODED_AT_ONCE = 2**20  # characters
SAVED_EVERY = 32 * 2**20  # characters
STATE = "progress.json"


@dataclass
class Counts:
    """What a split holds; `bytes` of text, `tokens` with one end of text a document."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0


@dataclass
class State:
    """How far a corpus is encoded. `digest` chains the SHA-256 of keys and texts."""

    threshold: int
    documents: int = 0
    empty: int = 0
    digest: str = ""
    train: Counts = field(default_factory=Counts)
    val: Counts = field(default_factory=Counts)

    @property
    def bytes(self) -> int:
        """Bytes of text in both splits."""
        return self.train.bytes + self.val.bytes

    def save(self, folder: Path) -> None:
        """Replace the stored state at once."""
        new = folder / f"{STATE}.new"
        write(new, json.dumps(asdict(self)))
        os.replace(new, folder / STATE)

    @classmethod
    def load(cls, folder: Path) -> "State":
        """The stored state; raises OSError, ValueError or TypeError where there is no good one."""
        stored = json.loads((folder / STATE).read_text())
        return cls(**{**stored, **{s: Counts(**stored[s]) for s in ("train", "val")}})


class Encoder:
    """Encodes documents in batches of pieces and appends them to the shards of their split."""

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, state: State, dtype: np.dtype[Any]
    ) -> None:
        self.folder, self.tokenizer, self.state = folder, tokenizer, state
        self.writers = {
            split: ShardWriter(folder, split, dtype, n_tokens=getattr(state, split).tokens)
            for split in ("train", "val")
        }
        self.batch: list[tuple[str, bool, str]] = []  # split, whether a document starts, piece
        self.waiting = self.waiting_bytes = self.unsaved = 0

    def add(self, document: Document, split: str) -> None:
        """Count and encode a document; an empty one is counted and left out."""
        counts: Counts = getattr(self.state, split)
        text_digest, starts = _of_key(document), True
        for piece in pieces(document.parts):
            encoded = piece.encode()
            text_digest.update(encoded)
            counts.bytes += len(encoded)
            self.batch.append((split, starts, piece))
            starts = False
            self.waiting += len(piece)
            self.waiting_bytes += len(encoded)
            if self.waiting >= ENCODED_AT_ONCE:
                self._encode()
        self.state.documents += 1
        self.state.empty += starts
        counts.documents += not starts
        self.state.digest = chained(self.state.digest, split, text_digest.digest())
        if self.unsaved >= SAVED_EVERY:
            self.save()

    def save(self) -> None:
        """Bring everything so far to the disk and note it."""
        self._encode()
        for writer in self.writers.values():
            writer.sync()
        self.state.save(self.folder)
        self.unsaved = 0

    def close(self) -> dict[str, list[Shard]]:
        """The finished shards of each split."""
        self._encode()
        return {split: writer.close() for split, writer in self.writers.items()}

    def _encode(self) -> None:
        ids: dict[str, list[int]] = {"train": [], "val": []}
        encoded = self.tokenizer.encode_batch([piece for _, _, piece in self.batch])
        for (split, starts, _), piece_ids in zip(self.batch, encoded, strict=True):
            if starts:
                ids[split].append(self.tokenizer.end_of_text)
            ids[split] += piece_ids
        if self.tokenizer.n_bytes([*ids["train"], *ids["val"]]) != self.waiting_bytes:
            changed = filter(None, (self.tokenizer.difference(piece) for *_, piece in self.batch))
            raise UserError(f"the tokenizer changes text: {next(changed, '')}")
        for split, split_ids in ids.items():
            self.writers[split].append(split_ids)
            getattr(self.state, split).tokens += len(split_ids)
        self.unsaved += self.waiting
        self.waiting = self.waiting_bytes = 0
        self.batch.clear()


def digest_of(document: Document) -> bytes:
    """SHA-256 of key and text."""
    text_digest = _of_key(document)
    for part in document.parts:
        text_digest.update(part.encode())
    return text_digest.digest()


def _of_key(document: Document) -> "hashlib._Hash":
    return hashlib.sha256(hashlib.sha256(document.key).digest())


def chained(before: str, split: str, text_digest: bytes) -> str:
    """The digest of a corpus one document longer."""
    return hashlib.sha256(f"{before} {split} ".encode() + text_digest).hexdigest()
