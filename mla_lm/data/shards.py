"""Token files: one split is a long sequence of ids, stored in shards that are read in order."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mla_lm.errors import UserError
from mla_lm.files import digest, replacing

__all__ = ["Shard", "TokenStream", "digest", "write_shard"]


class Shard(NamedTuple):
    """One file of a split."""

    path: Path
    tokens: int
    sha256: str


def write_shard(path: Path, ids: NDArray[Any]) -> Shard:
    """Write ids (N,) to a file that appears whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(ids.tobytes())
    return Shard(path, len(ids), digest(path))


class TokenStream:
    """The ids of a split, memory-mapped; a slice copies, across shards where it must.

    Raises UserError naming the shard and the position of an id beyond the vocabulary.
    """

    def __init__(self, shards: Sequence[Shard], dtype: np.dtype[Any], *, vocab_size: int) -> None:
        self.shards, self.dtype, self.vocab_size = shards, dtype, vocab_size
        self.starts = np.cumsum([0, *(shard.tokens for shard in shards)])
        self.maps = [np.memmap(shard.path, dtype=dtype, mode="r") for shard in shards]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, part: slice) -> NDArray[Any]:
        start, stop, step = part.indices(len(self))
        assert step == 1
        found = [np.empty(0, self.dtype)]
        first = max(0, int(np.searchsorted(self.starts, start, side="right")) - 1)
        for index in range(first, int(np.searchsorted(self.starts, stop))):
            offset = int(self.starts[index])
            begin = max(0, start - offset)
            ids = self.maps[index][begin : max(0, stop - offset)]
            if len(ids) and ids.max() >= self.vocab_size:
                at = int((ids >= self.vocab_size).argmax())
                path = self.shards[index].path
                raise UserError(
                    f"{path}: id {ids[at]} at token {begin + at}, the vocabulary has "
                    f"{self.vocab_size}; delete {path.parent}"
                )
            found.append(ids)
        return np.concatenate(found)
