"""A shuffle that needs no memory: a keyed permutation of 0 .. n - 1, computed index by index.

A Feistel network over 2^(2 h) >= n numbers is a bijection whatever its round function; an index
that lands outside 0 .. n - 1 is sent through again until it lands inside (cycle walking; Black and
Rogaway, "Ciphers with arbitrary finite domains", 2002). At most 4 n numbers, so 4 rounds a walk.
"""

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8
Indices = NDArray[np.uint64]


def permuted(indices: NDArray[np.int64], n: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Where the permutation of `seed` and `epoch` sends each of `indices`, all below n."""
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    keys = np.random.Philox(key=[seed, epoch]).random_raw(ROUNDS)
    walking = indices.astype(np.uint64)
    outside = np.ones(len(walking), dtype=np.bool_)
    while outside.any():
        walking[outside] = _encrypt(walking[outside], half, keys)
        outside = walking >= n
    return walking.astype(np.int64)


def _encrypt(x: Indices, half: np.uint64, keys: Indices) -> Indices:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << half) | right


def _mixed(x: Indices) -> Indices:
    """Every input bit moves every output bit (the finaliser of SplitMix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
