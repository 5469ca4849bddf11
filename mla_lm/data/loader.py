"""Batches (B, T + 1) int64 from a token stream: window j holds tokens j T .. (j + 1) T.

Neighbouring windows share one token, so that every token is predicted exactly once. The order is a
pure function of (seed, epoch, position); the loaders are sized, and the training one has a state.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mla_lm.errors import UserError

Stream = NDArray[np.unsignedinteger]


def _windows(tokens: Stream, starts: NDArray[np.int64], seq_len: int) -> Tensor:
    rows = np.stack([tokens[start : start + seq_len + 1] for start in starts])
    return torch.from_numpy(rows.astype(np.int64))


class TrainLoader:
    """Shuffled windows for ever, one epoch an iteration, in whole optimizer steps.

    A step takes `accumulate` batches; what is left of an epoch is left out. Raises UserError when
    the stream is too short for one step.
    """

    def __init__(
        self, tokens: Stream, *, seq_len: int, batch_size: int, accumulate: int, seed: int
    ) -> None:
        self.tokens, self.seq_len, self.batch_size = tokens, seq_len, batch_size
        self.accumulate, self.seed = accumulate, seed
        self.n_windows = (len(tokens) - 1) // seq_len
        self.epoch = self.batch = 0
        per_step = batch_size * accumulate
        if self.n_windows < per_step:
            raise UserError(
                f"data.seq_len={seq_len}: {per_step} sequences of it need "
                f"{per_step * seq_len + 1} tokens, the training split has {len(tokens)}"
            )

    def __len__(self) -> int:
        return self.n_windows // (self.batch_size * self.accumulate) * self.accumulate

    def __iter__(self) -> Iterator[Tensor]:
        if self.batch == len(self):
            self.epoch, self.batch = self.epoch + 1, 0
        rng = np.random.Generator(np.random.Philox(key=[self.seed, self.epoch]))
        order = rng.permutation(self.n_windows)
        while self.batch < len(self):
            chosen = order[self.batch * self.batch_size :][: self.batch_size]
            self.batch += 1
            yield _windows(self.tokens, chosen * self.seq_len, self.seq_len)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch comes from."""
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a stored position."""
        self.epoch, self.batch = state["epoch"], state["batch"]


class EvalLoader:
    """The windows in order; what is left behind the last whole one comes as a shorter batch.

    Raises UserError when the stream has fewer than two tokens.
    """

    def __init__(self, tokens: Stream, *, seq_len: int, batch_size: int) -> None:
        self.tokens, self.seq_len, self.batch_size = tokens, seq_len, batch_size
        if len(tokens) < 2:
            raise UserError(f"the validation split has {len(tokens)} token(s), nothing to predict")
        self.n_windows = (len(tokens) - 1) // seq_len
        self.has_rest = self.n_windows * seq_len + 1 < len(tokens)

    def __len__(self) -> int:
        return -(-self.n_windows // self.batch_size) + self.has_rest

    def __iter__(self) -> Iterator[Tensor]:
        starts = np.arange(self.n_windows, dtype=np.int64) * self.seq_len
        for first in range(0, self.n_windows, self.batch_size):
            yield _windows(self.tokens, starts[first : first + self.batch_size], self.seq_len)
        if self.has_rest:
            rest = self.tokens[self.n_windows * self.seq_len :]
            yield torch.from_numpy(rest.astype(np.int64)).unsqueeze(0)
