"""Every token predicted exactly once, in an order that a stored position can continue."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from mla_lm.data import EvalLoader, TrainLoader
from mla_lm.errors import UserError

lengths = st.integers(min_value=2, max_value=400)
seq_lens = st.integers(min_value=2, max_value=23)
batch_sizes = st.integers(min_value=1, max_value=7)


def stream(n_tokens: int) -> NDArray[np.uint16]:
    """Each token is its own position."""
    return np.arange(n_tokens, dtype=np.uint16)


def loader(
    *, n_tokens: int = 301, seq_len: int = 10, batch_size: int = 4, seed: int = 1
) -> TrainLoader:
    return TrainLoader(
        stream(n_tokens), seq_len=seq_len, batch_size=batch_size, accumulate=1, seed=seed
    )


def for_ever(train: TrainLoader) -> Iterator[Tensor]:
    while True:
        yield from train


def samples(train: TrainLoader, count: int) -> list[Tensor]:
    """The first rows a loader gives, epoch after epoch."""
    batches = islice(for_ever(train), -(-count // train.batch_size))
    return list(torch.cat(list(batches)))[:count]


def targets(batches: list[Tensor]) -> list[int]:
    return torch.cat([batch[:, 1:].flatten() for batch in batches]).tolist()


@given(n_tokens=lengths, seq_len=seq_lens, batch_size=batch_sizes, seed=st.integers(0, 3))
def test_an_epoch_of_samples_predicts_every_token_of_its_windows_once(
    n_tokens: int, seq_len: int, batch_size: int, seed: int
) -> None:
    n_windows = (n_tokens - 1) // seq_len
    if n_windows < batch_size:
        with pytest.raises(UserError, match=f"{batch_size * seq_len + 1} tokens"):
            loader(n_tokens=n_tokens, seq_len=seq_len, batch_size=batch_size)
        return
    train = loader(n_tokens=n_tokens, seq_len=seq_len, batch_size=batch_size, seed=seed)
    rows = samples(train, 3 * n_windows)
    for epoch in range(3):
        of_epoch = torch.stack(rows[epoch * n_windows : (epoch + 1) * n_windows])
        assert sorted(targets([of_epoch])) == list(range(1, n_windows * seq_len + 1))
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
    tokens = stream(n_windows * 5 + 1)
    if n_windows < 12 * accumulate:
        return

    def of_rank(rank: int, n_ranks: int) -> TrainLoader:
        return TrainLoader(
            tokens,
            seq_len=5,
            batch_size=12 // n_ranks,
            accumulate=accumulate,
            seed=seed,
            rank=rank,
            n_ranks=n_ranks,
        )

    expected = list(islice(for_ever(of_rank(0, 1)), stop + 4))
    for before, after in ((1, 3), (2, 1), (3, 4), (4, 2)):
        found, state = [], of_rank(0, 1).state_dict()
        for n_ranks, n_batches in ((before, stop), (after, 4)):
            ranks = [of_rank(rank, n_ranks) for rank in range(n_ranks)]
            for one in ranks:
                one.load_state_dict(dict(state))
            parts = [list(islice(for_ever(one), n_batches)) for one in ranks]
            found += [torch.cat(step) for step in zip(*parts, strict=True)]
            states = [one.state_dict() for one in ranks]
            assert states == [states[0]] * n_ranks
            state = states[0]
        assert len(found) == len(expected)
        assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_samples_come_in_the_same_order_for_any_batch_size(batch_size: int) -> None:
    whole = torch.stack(samples(loader(batch_size=4), 60))
    assert torch.equal(torch.stack(samples(loader(batch_size=batch_size), 60)), whole)


@given(n_tokens=lengths, seq_len=seq_lens, batch_size=batch_sizes)
def test_eval_predicts_every_token_once(n_tokens: int, seq_len: int, batch_size: int) -> None:
    held_out = EvalLoader(stream(n_tokens), seq_len=seq_len, batch_size=batch_size)
    batches = list(held_out)
    assert targets(batches) == list(range(1, n_tokens))
    assert len(batches) == len(held_out)
    assert all(torch.equal(batch[:, :-1] + 1, batch[:, 1:]) for batch in batches)


def test_batches_are_rows_of_consecutive_tokens() -> None:
    for batch in loader():
        assert batch.shape == (4, 11)
        assert batch.dtype == torch.int64
        assert torch.equal(batch[:, :-1] + 1, batch[:, 1:])
        assert (batch[:, 0] % 10 == 0).all()


def test_eval_reads_the_same_batches_again() -> None:
    held_out = EvalLoader(stream(95), seq_len=10, batch_size=4)
    first, second = list(held_out), list(held_out)
    assert [batch.shape for batch in first] == [(4, 11), (4, 11), (1, 11), (1, 5)]
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def epochs(seed: int) -> list[list[int]]:
        train = loader(seed=seed)
        return [targets(list(train)) for _ in range(3)]

    first, second, other = epochs(1), epochs(1), epochs(2)
    assert first == second
    orders = {tuple(order) for order in [*first, *other]}
    assert len(orders) == 6


@given(
    n_windows=st.integers(min_value=4, max_value=25),
    batch_size=st.integers(min_value=1, max_value=4),
    stop=st.integers(min_value=0, max_value=40),
)
def test_stored_position_continues_exactly(n_windows: int, batch_size: int, stop: int) -> None:
    shape = {"n_tokens": n_windows * 5 + 1, "seq_len": 5, "batch_size": batch_size}
    expected = list(islice(for_ever(loader(**shape)), stop + 12))
    train = loader(**shape)
    assert len(list(islice(for_ever(train), stop))) == stop
    resumed = loader(**shape)
    resumed.load_state_dict(dict(train.state_dict()))
    for got, wanted in zip(islice(for_ever(resumed), 12), expected[stop:], strict=True):
        assert torch.equal(got, wanted)


def test_position_not_restored_is_noticed() -> None:
    expected = list(islice(for_ever(loader()), 8))
    fresh = list(islice(for_ever(loader()), 3))
    assert not torch.equal(fresh[0], expected[5])


def test_an_iteration_after_a_resume_ends_where_it_would_have_ended() -> None:
    train = loader(n_tokens=101, batch_size=3)
    assert len(train) == 3
    for taken in range(7):
        resumed = loader(n_tokens=101, batch_size=3)
        resumed.load_state_dict({"sample": 3 * taken})
        assert len(list(resumed)) == 3 - taken % 3


def test_an_iteration_cut_off_by_its_length_is_followed_by_a_whole_one() -> None:
    """Lightning takes `len(loader)` batches and never asks for the one behind them."""
    train, whole = loader(), loader()
    for _ in range(3):
        batches = list(islice(iter(train), len(train)))
        assert targets(batches) == targets(list(whole))


def test_state_is_plain() -> None:
    state = loader().state_dict()
    assert all(type(value) is int for value in state.values())


def test_too_short_training_split_is_refused() -> None:
    assert len(loader(n_tokens=41)) == 1
    with pytest.raises(UserError, match=r"data\.seq_len=10: .* 41 tokens, .* has 40"):
        loader(n_tokens=40)


@pytest.mark.parametrize("n_tokens", [0, 1])
def test_validation_split_without_a_target_is_refused(n_tokens: int) -> None:
    with pytest.raises(UserError, match="validation split"):
        EvalLoader(stream(n_tokens), seq_len=10, batch_size=4)


@pytest.mark.parametrize("accumulate", [1, 2, 3, 5])
def test_an_epoch_holds_whole_optimizer_steps(accumulate: int) -> None:
    train = TrainLoader(stream(1 + 7 * 11), seq_len=7, batch_size=1, accumulate=accumulate, seed=0)
    assert len(train) == len(list(train)) == 11 // accumulate * accumulate


def test_a_stream_shorter_than_one_accumulated_step_is_refused() -> None:
    with pytest.raises(UserError, match="6 sequences"):
        TrainLoader(stream(1 + 7 * 5), seq_len=7, batch_size=2, accumulate=3, seed=0)
