"""The keyed permutation: a bijection, the same for any way of asking, and well mixed."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mla_lm.data.order import permuted

sizes = st.integers(min_value=1, max_value=700)
seeds = st.integers(min_value=0, max_value=2**32 - 1)
epochs = st.integers(min_value=0, max_value=2**40)


@given(n=sizes, seed=seeds, epoch=epochs)
def test_every_index_is_hit_once(n: int, seed: int, epoch: int) -> None:
    assert sorted(permuted(np.arange(n), n, seed=seed, epoch=epoch)) == list(range(n))


@given(n=sizes, seed=seeds, at=st.lists(st.integers(min_value=0), min_size=1, max_size=9))
def test_an_index_does_not_depend_on_those_asked_with_it(n: int, seed: int, at: list[int]) -> None:
    indices = np.array([index % n for index in at], dtype=np.int64)
    whole = permuted(np.arange(n), n, seed=seed, epoch=3)
    assert permuted(indices, n, seed=seed, epoch=3).tolist() == whole[indices].tolist()


def test_seed_and_epoch_change_the_order() -> None:
    orders = [permuted(np.arange(64), 64, seed=s, epoch=e) for s in range(4) for e in range(4)]
    assert len({tuple(order) for order in orders}) == 16


@pytest.mark.parametrize("n", [2**33 + 1, 10**12])
def test_large_domains_cost_nothing_extra(n: int) -> None:
    windows = permuted(np.arange(1000), n, seed=1, epoch=0)
    assert len(set(windows.tolist())) == 1000
    assert 0 <= windows.min() < n // 20
    assert n - n // 20 < windows.max() < n


@pytest.mark.parametrize("n", [4, 5, 9])
def test_every_place_is_equally_likely(n: int) -> None:
    """Chi-squared over places; its mean is the degrees of freedom, 5 deviations are allowed."""
    n_epochs = 2000
    counts = Counter[tuple[int, int]]()
    for epoch in range(n_epochs):
        counts.update(enumerate(permuted(np.arange(n), n, seed=7, epoch=epoch).tolist()))
    expected = n_epochs / n
    chi_squared = sum((counts[i, j] - expected) ** 2 for i in range(n) for j in range(n)) / expected
    freedom = (n - 1) ** 2
    assert chi_squared < freedom + 5 * (2 * freedom) ** 0.5


def test_neighbours_are_torn_apart() -> None:
    n = 4000
    order = permuted(np.arange(n), n, seed=1, epoch=0)
    assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 0.06
    assert np.abs(np.diff(order)).mean() == pytest.approx(n / 3, rel=0.05)
