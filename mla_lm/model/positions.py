"""Where the tokens of a forward pass stand, and what each may attend to. B rows, T tokens."""

from typing import NamedTuple

from torch import Tensor


class Positions(NamedTuple):
    """Where the T tokens of a forward pass stand; shared by all layers."""

    cos: Tensor  # (T, rope_dim / 2), or (B, T, rope_dim / 2) where rows differ
    sin: Tensor
    mask: Tensor | None = None  # (1 | B, 1, T, L) what may be attended to; None: all that came
    slots: slice | Tensor = slice(0)  # of a cache: the same in all rows, or (B, T)
    cache_len: int = 0  # L, the new tokens included
