"""Positions and attention mask of the tokens of a forward pass. B rows, T tokens, L cached."""

from typing import NamedTuple

from torch import Tensor


class Positions(NamedTuple):
    """Rotary tables, mask and cache slots of T tokens; shared by all layers."""

    cos: Tensor  # (T, rope_dim / 2), or (B, T, rope_dim / 2) where rows differ
    sin: Tensor
    mask: Tensor | None = None  # (1 | B, 1, T, L), True: attend; None: causal
    slots: slice | Tensor = slice(0)  # of the KV cache: equal for all rows, or (B, T)
    cache_len: int = 0  # L, new tokens included
