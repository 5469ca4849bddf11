"""Batches (B, T + 1) int64 from a token stream: window j holds tokens j T .. (j + 1) T.

Neighbouring windows share one token, so that every token is predicted exactly once. Sample i is
window i mod n of the order of epoch i div n, a permutation drawn by a generator that is seeded with
(seed, epoch): the same for any number of ranks and any batch size, and a resumed run needs no more
than the sample number.
"""

from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mla_lm.errors import UserError


class Stream(Protocol):
    """Token ids: a `TokenStream`, or an array."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> NDArray[Any]: ...


@lru_cache(maxsize=2)  # a batch may end one epoch and begin the next
def window_order(n_windows: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order (n_windows,) in which an epoch takes the windows."""
    return np.random.default_rng((seed, epoch)).permutation(n_windows)


@dataclass(eq=False)
class _Loader:
    tokens: Stream
    _: KW_ONLY
    seq_len: int
    batch_size: int  # of this rank
    rank: int = 0
    n_ranks: int = 1

    def __post_init__(self) -> None:
        self.n_windows, self.n_dropped = divmod(len(self.tokens) - 1, self.seq_len)
        self.global_batch = self.batch_size * self.n_ranks

    def _rows(self, windows: Iterable[int]) -> Tensor:
        starts = [window * self.seq_len for window in windows]
        rows = np.empty((len(starts), self.seq_len + 1), dtype=np.int64)
        for row, start in zip(rows, starts, strict=True):
            row[:] = self.tokens[start : start + self.seq_len + 1]
        return torch.from_numpy(rows)


@dataclass(eq=False, kw_only=True)
class TrainLoader(_Loader):
    """Shuffled windows, endlessly; the last `n_dropped` tokens fill no window and are not used.

    `sample` counts the samples that all ranks have taken, the only state. An iteration ends at a
    multiple of `len`: the micro-batches of all whole optimizer steps in an epoch. Raises UserError
    when the stream is too short for one step.
    """

    accumulate: int
    seed: int
    sample: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        per_step = self.global_batch * self.accumulate
        if self.n_windows < per_step:
            raise UserError(
                f"data.seq_len={self.seq_len}: {per_step} sequences of it need "
                f"{per_step * self.seq_len + 1} tokens, the training split has {len(self.tokens)}"
            )

    def __len__(self) -> int:
        return self.n_windows // (self.global_batch * self.accumulate) * self.accumulate

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(self.sample // self.global_batch % len(self), len(self)):
            micro_batch = self._micro_batch(self.sample)
            self.sample += self.global_batch
            yield micro_batch

    def rest_of_step(self) -> Tensor:
        """This rank's rows of a step but for those of its first micro-batch, just taken."""
        starts = [self.sample + n * self.global_batch for n in range(self.accumulate - 1)]
        return torch.cat([self._rows(()), *map(self._micro_batch, starts)])

    def _micro_batch(self, sample: int) -> Tensor:
        """This rank's part of the global micro-batch that begins with `sample`."""
        first = sample + self.rank * self.batch_size
        return self._rows(map(self._window, range(first, first + self.batch_size)))

    def _window(self, sample: int) -> int:
        epoch, index = divmod(sample, self.n_windows)
        return int(window_order(self.n_windows, seed=self.seed, epoch=epoch)[index])

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch comes from."""
        return {"sample": self.sample}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a stored position."""
        self.sample = state["sample"]


class EvalLoader(_Loader):
    """The windows in order; the tokens after the last whole window are one shorter batch.

    Ranks take batches round-robin. All ranks get the same number of batches, so the last batch of a
    rank may have no rows. Raises UserError when the stream has fewer than two tokens.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if (n_tokens := len(self.tokens)) < 2:
            raise UserError(f"data: {n_tokens} token(s) for validation, nothing to predict")

    def __len__(self) -> int:
        return -(-self.n_windows // self.global_batch) + bool(self.n_dropped)

    def __iter__(self) -> Iterator[Tensor]:
        for first in range(0, self.n_windows, self.global_batch):
            first += self.rank * self.batch_size
            yield self._rows(range(first, min(first + self.batch_size, self.n_windows)))
        if self.n_dropped:
            rest = self.tokens[self.n_windows * self.seq_len : len(self.tokens)]
            row = torch.from_numpy(rest.astype(np.int64)).unsqueeze(0)
            yield row if self.rank == 0 else row[:0]
