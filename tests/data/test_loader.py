"""Every token predicted exactly once, in an order that a stored position can continue."""

from collections.abc import Iterator
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from mla_lm.data.loader import EvalLoader, TrainLoader, window_order
from tests.conftest import one_line

lengths = st.integers(min_value=2, max_value=400)
seq_lens = st.integers(min_value=2, max_value=23)
batch_sizes = st.integers(min_value=1, max_value=7)


def stream(n_tokens: int) -> NDArray[np.uint16]:
    """Each token is its own position."""
    return np.arange(n_tokens, dtype=np.uint16)


def loader(*, n_tokens: int = 301, **keys: int) -> TrainLoader:
    shape = {"seq_len": 10, "batch_size": 4, "accumulate": 1, "seed": 1} | keys
    return TrainLoader(stream(n_tokens), **shape)


def endless(train: TrainLoader) -> Iterator[Tensor]:
    while True:
        yield from train


def samples(train: TrainLoader, count: int) -> Tensor:
    """The first rows a loader gives, epoch after epoch."""
    batches = islice(endless(train), -(-count // train.batch_size))
    return torch.cat(list(batches))[:count]


def targets(batches: list[Tensor]) -> list[int]:
    return torch.cat([batch[:, 1:].flatten() for batch in batches]).tolist()


@given(n=st.integers(1, 700), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 2**40))
def test_order_is_a_permutation_that_seed_and_epoch_decide(n: int, seed: int, epoch: int) -> None:
    order = window_order(n, seed=seed, epoch=epoch).tolist()
    assert sorted(order) == list(range(n))
    window_order.cache_clear()
    assert window_order(n, seed=seed, epoch=epoch).tolist() == order
    if n > 20:
        for other in ({"seed": seed + 1, "epoch": epoch}, {"seed": seed, "epoch": epoch + 1}):
            assert window_order(n, **other).tolist() != order


@given(n_tokens=lengths, seq_len=seq_lens, batch_size=batch_sizes, seed=st.integers(0, 3))
def test_an_epoch_of_samples_predicts_every_token_of_its_windows_once(
    n_tokens: int, seq_len: int, batch_size: int, seed: int
) -> None:
    n_windows = (n_tokens - 1) // seq_len
    shape = {"n_tokens": n_tokens, "seq_len": seq_len, "seed": seed}
    if n_windows < batch_size:
        said = one_line(lambda: loader(**shape, batch_size=batch_size))
        assert f"{batch_size * seq_len + 1} tokens" in said
        return
    train = loader(**shape, batch_size=batch_size)
    rows = samples(train, 3 * n_windows)
    assert rows.dtype == torch.int64
    assert torch.equal(rows, samples(loader(**shape, batch_size=1), 3 * n_windows))
    assert torch.equal(rows[:, :-1] + 1, rows[:, 1:])
    for epoch in rows.split(n_windows):
        assert sorted(targets([epoch])) == list(range(1, n_windows * seq_len + 1))
    assert 1 + n_windows * seq_len + train.n_dropped == n_tokens
    assert train.n_dropped < seq_len


@given(
    n_windows=st.integers(min_value=12, max_value=40),
    accumulate=st.integers(min_value=1, max_value=2),
    seed=st.integers(0, 3),
    stop=st.integers(min_value=0, max_value=30),
)
def test_order_does_not_depend_on_ranks_or_interruption(
    n_windows: int, accumulate: int, seed: int, stop: int
) -> None:
    """A global batch of 12 on 1, 2, 3 and 4 ranks, resumed on another number of them."""
    if n_windows < 12 * accumulate:
        return

    def of_rank(rank: int, n_ranks: int) -> TrainLoader:
        shape = {"n_tokens": n_windows * 5 + 1, "seq_len": 5, "batch_size": 12 // n_ranks}
        return loader(**shape, accumulate=accumulate, seed=seed, rank=rank, n_ranks=n_ranks)

    expected = list(islice(endless(of_rank(0, 1)), stop + 4))
    for before, after in ((1, 1), (1, 3), (2, 1), (3, 4), (4, 2)):
        found, state = [], of_rank(0, 1).state_dict()
        for n_ranks, n_batches in ((before, stop), (after, 4)):
            ranks = [of_rank(rank, n_ranks) for rank in range(n_ranks)]
            for one in ranks:
                one.load_state_dict(dict(state))
            parts = [list(islice(endless(one), n_batches)) for one in ranks]
            found += [torch.cat(step) for step in zip(*parts, strict=True)]
            states = [one.state_dict() for one in ranks]
            assert states == [states[0]] * n_ranks
            state = states[0]
        assert all(type(value) is int for value in state.values())
        assert len(found) == len(expected)
        assert all(map(torch.equal, found, expected))


def test_position_not_restored_is_noticed() -> None:
    expected = list(islice(endless(loader()), 8))
    fresh = list(islice(endless(loader()), 3))
    assert not torch.equal(fresh[0], expected[5])


def test_an_iteration_after_a_resume_ends_where_it_would_have_ended() -> None:
    train = loader(n_tokens=101, batch_size=3)
    assert len(train) == 3
    for taken in range(7):
        train.load_state_dict({"sample": 3 * taken})
        assert len(list(train)) == 3 - taken % 3


def test_an_iteration_cut_off_by_its_length_is_followed_by_a_whole_one() -> None:
    """Lightning takes `len(loader)` batches and never asks for the one behind them."""
    train, whole = loader(), loader()
    for _ in range(3):
        batches = list(islice(iter(train), len(train)))
        assert targets(batches) == targets(list(whole))


@pytest.mark.parametrize("accumulate", [1, 2, 3, 5])
def test_an_epoch_holds_whole_optimizer_steps(accumulate: int) -> None:
    train = loader(n_tokens=1 + 7 * 11, seq_len=7, batch_size=1, accumulate=accumulate)
    assert len(train) == len(list(train)) == 11 // accumulate * accumulate


def test_a_stream_shorter_than_one_step_is_refused() -> None:
    assert len(loader(n_tokens=41)) == 1
    said = one_line(lambda: loader(n_tokens=40))
    assert said.startswith("data.seq_len=10: 4 sequences")
    assert said.endswith("need 41 tokens, the training split has 40")
    assert "6 sequences" in one_line(lambda: loader(n_tokens=51, batch_size=2, accumulate=3))
    for n_tokens in (0, 1):
        said = one_line(partial(EvalLoader, stream(n_tokens), seq_len=10, batch_size=4))
        assert said.startswith(f"data: {n_tokens} token(s) for validation")


@given(n_tokens=lengths, seq_len=seq_lens, batch_size=batch_sizes, n_ranks=st.integers(1, 3))
def test_eval_predicts_every_token_once_over_all_ranks(
    n_tokens: int, seq_len: int, batch_size: int, n_ranks: int
) -> None:
    shape = {"seq_len": seq_len, "batch_size": batch_size, "n_ranks": n_ranks}
    ranks = [EvalLoader(stream(n_tokens), rank=rank, **shape) for rank in range(n_ranks)]
    steps = list(zip(*ranks, strict=True))
    assert {len(one) for one in ranks} == {len(steps)}
    assert [i for step in steps for rows in step for i in targets([rows])] == [*range(1, n_tokens)]
    if n_ranks == 1:
        assert all(map(torch.equal, [step[0] for step in steps], ranks[0]))


def test_eval_ends_with_a_shorter_row() -> None:
    batches = list(EvalLoader(stream(95), seq_len=10, batch_size=4))
    assert [batch.shape for batch in batches] == [(4, 11), (4, 11), (1, 11), (1, 5)]
