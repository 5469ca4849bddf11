"""Token files: one split is a long sequence of ids, cut into shards of at most `SHARD_BYTES`."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mla_lm.errors import UserError

SHARD_BYTES = 256_000_000


class Shard(NamedTuple):
    """One file of a split."""

    path: Path
    tokens: int
    sha256: str


def shard_path(folder: Path, split: str, index: int) -> Path:
    """Where a shard lies."""
    return folder / f"{split}-{index:05}.bin"


class ShardWriter:
    """Appends ids to the shards of a split, from `n_tokens` on; what lies behind is cut off.

    Raises UserError naming a shard that cannot be written, or holds less than that.
    """

    def __init__(self, folder: Path, split: str, dtype: np.dtype[Any], *, n_tokens: int) -> None:
        self.folder, self.split, self.dtype, self.n_tokens = folder, split, dtype, n_tokens
        self.capacity = SHARD_BYTES // dtype.itemsize
        self.unsynced: set[Path] = set()
        counts = self._counts()
        for index, count in enumerate(counts):
            path, size = shard_path(folder, split, index), count * dtype.itemsize
            if size > (path.stat().st_size if path.exists() else 0):
                raise UserError(f"{path}: shorter than it was; delete {folder}")
            with path.open("ab") as file:
                file.truncate(size)
        for path in folder.glob(f"{split}-*.bin"):
            if path > shard_path(folder, split, len(counts) - 1):
                path.unlink()

    def append(self, ids: Sequence[int]) -> None:
        """Write `ids` behind the others."""
        rest = np.array(ids, dtype=self.dtype)
        while len(rest):
            index, used = divmod(self.n_tokens, self.capacity)
            block = rest[: self.capacity - used]
            path = shard_path(self.folder, self.split, index)
            write(path, block.tobytes(), append=True)
            self.unsynced.add(path)
            self.n_tokens += len(block)
            rest = rest[len(block) :]

    def sync(self) -> None:
        """Bring everything written so far to the disk."""
        for path in self.unsynced:
            with _named(path), path.open("rb") as file:
                os.fsync(file.fileno())
        self.unsynced.clear()

    def close(self) -> list[Shard]:
        """The finished shards with their digests."""
        self.sync()
        paths = [shard_path(self.folder, self.split, i) for i in range(len(self._counts()))]
        return [Shard(p, n, digest(p)) for p, n in zip(paths, self._counts(), strict=True)]

    def _counts(self) -> list[int]:
        """Tokens in each shard; a split without tokens has an empty one."""
        full, rest = divmod(self.n_tokens, self.capacity)
        return [self.capacity] * full + [rest] * (rest > 0 or full == 0)


def write(path: Path, content: bytes | str, *, append: bool = False) -> None:
    """Write to a file; raises UserError naming it."""
    block = memoryview(content.encode() if isinstance(content, str) else content)
    with _named(path), path.open("ab" if append else "wb", buffering=0) as file:
        while block:
            block = block[file.write(block) :]  # a nearly full disk takes a part


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


class TokenStream:
    """The ids of a split, memory-mapped; a slice copies, across shards where it must.

    Raises UserError naming the shard and the position of an id beyond the vocabulary.
    """

    def __init__(self, shards: Sequence[Shard], dtype: np.dtype[Any], *, vocab_size: int) -> None:
        self.shards, self.vocab_size = shards, vocab_size
        self.starts = np.cumsum([0, *(shard.tokens for shard in shards)])
        self.maps = [
            np.memmap(shard.path, dtype=dtype, mode="r") if shard.tokens else np.empty(0, dtype)
            for shard in shards
        ]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, part: slice) -> NDArray[Any]:
        start, stop, step = part.indices(len(self))
        assert step == 1
        first = max(0, int(np.searchsorted(self.starts, start, side="right")) - 1)
        found = []
        for index in range(first, len(self.shards)):
            offset = int(self.starts[index])
            if offset >= stop:
                break
            ids = self.maps[index][max(0, start - offset) : stop - offset]
            if len(ids) and int(ids.max()) >= self.vocab_size:
                at = int((ids >= self.vocab_size).argmax())
                path, place = self.shards[index].path, max(0, start - offset) + at
                raise UserError(
                    f"{path}: id {ids[at]} at token {place}, the vocabulary has "
                    f"{self.vocab_size}; delete {path.parent}"
                )
            found.append(ids)
        return np.concatenate(found) if found else np.empty(0, self.maps[0].dtype)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
