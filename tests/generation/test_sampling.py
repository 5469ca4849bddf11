"""From logits to probabilities and ids, against loops and the warpers of transformers."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mla_lm.errors import UserError
from mla_lm.generation import Sampling
from mla_lm.generation.sampling import distribution, draw
from tests.generation.conftest import chi_square

COMBINATIONS = [
    Sampling(),
    Sampling(0.3),
    Sampling(4.0),
    Sampling(top_k=1),
    Sampling(top_k=3),
    Sampling(top_k=40),
    Sampling(top_p=0.01),
    Sampling(top_p=0.6),
    Sampling(top_p=0.99),
    Sampling(min_p=0.05),
    Sampling(min_p=0.4),
    Sampling(min_p=1.0),
    Sampling(0.7, top_k=6, top_p=0.8),
    Sampling(2.5, top_k=9, top_p=0.9, min_p=0.15),
    Sampling(0.9, top_p=0.95, min_p=0.1),
    Sampling(1.5, top_k=4, min_p=0.3),
]
each_combination = pytest.mark.parametrize("sampling", COMBINATIONS, ids=str)


def softmax(logits: Sequence[float]) -> list[float]:
    weights = [math.exp(logit - max(logits)) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def by_hand(logits: Sequence[float], sampling: Sampling) -> list[float]:
    """`distribution` of one row, in double precision, filter after filter."""
    kept = {i: logit / sampling.temperature for i, logit in enumerate(logits)}
    best_first = sorted(kept, key=lambda i: -kept[i])
    kept = {i: kept[i] for i in best_first[: sampling.top_k]}
    nucleus: dict[int, float] = {}
    before = 0.0
    for i, share in zip(kept, softmax(list(kept.values())), strict=True):
        if before < sampling.top_p or sampling.top_p == 1:
            nucleus[i] = kept[i]
        before += share
    shares = dict(zip(nucleus, softmax(list(nucleus.values())), strict=True))
    floor = sampling.min_p * max(shares.values())
    shares = {i: share for i, share in shares.items() if share >= floor}
    return [shares.get(i, 0.0) / sum(shares.values()) for i in range(len(logits))]


def rows(*, seed: int, n_ids: int = 13) -> Tensor:
    return 3 * torch.randn(40, n_ids, generator=torch.Generator().manual_seed(seed))


@each_combination
def test_distribution_is_the_one_by_hand(sampling: Sampling) -> None:
    logits = rows(seed=1)
    expected = torch.tensor([by_hand(row.tolist(), sampling) for row in logits])
    got = distribution(logits, sampling)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(got > 1e-30, expected > 1e-30)


@each_combination
def test_distribution_is_that_of_the_warpers_of_transformers(sampling: Sampling) -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    logits, ids = rows(seed=2), torch.zeros(40, 1, dtype=torch.int64)
    warpers = [process.TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k is not None:
        warpers.append(process.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(process.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        warpers.append(process.MinPLogitsWarper(sampling.min_p))
    scores = logits
    for warp in warpers:
        scores = warp(ids, scores)
    torch.testing.assert_close(distribution(logits, sampling), scores.softmax(dim=-1))


@each_combination
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_row_sums_to_one_in_float32(sampling: Sampling, dtype: torch.dtype) -> None:
    logits = rows(seed=3, n_ids=30).to(dtype).unflatten(0, (5, 8))
    got = distribution(logits, sampling)
    assert got.dtype == torch.float32
    assert got.shape == logits.shape
    torch.testing.assert_close(got.sum(dim=-1), torch.ones(5, 8))
    torch.testing.assert_close(got[3, 6], distribution(logits[3, 6], sampling))


@each_combination
def test_logits_are_left_as_they_are(sampling: Sampling) -> None:
    logits = rows(seed=4)
    distribution(logits, sampling)
    assert torch.equal(logits, rows(seed=4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_puts_everything_on_the_first_of_the_best(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1.0, 4.0, 4.0], [-2.0, -3.0, -2.5]], dtype=dtype)
    got = distribution(logits, Sampling(temperature=0, top_k=2, top_p=0.3, min_p=0.2))
    assert got.dtype == torch.float32
    assert got.tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("temperature", [5e-324, 1e-50, 1e-40, 1e-20, 1e-3])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    logits = torch.tensor([[2.0, 900.0, 899.0], [-900.0, -899.0, -torch.inf]])
    assert distribution(logits, Sampling(temperature)).tolist() == [[0, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize("temperature", [1e10, 1e38, 1e39, 1.7e308])
def test_a_huge_temperature_is_uniform_over_what_is_allowed(temperature: float) -> None:
    logits = torch.tensor([[2.0, 90.0, -3.0, 7.0], [5.0, -torch.inf, -90.0, -torch.inf]])
    expected = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0, 0.5, 0]])
    torch.testing.assert_close(distribution(logits, Sampling(temperature)), expected)


def test_top_k_keeps_all_that_tie_with_the_last() -> None:
    got = distribution(torch.tensor([3.0, 1.0, 3.0, 3.0, 0.0]), Sampling(top_k=2))
    torch.testing.assert_close(got, torch.tensor([1 / 3, 0, 1 / 3, 1 / 3, 0]))


@pytest.mark.parametrize(("top_p", "n_kept"), [(0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (0.8, 4)])
def test_top_p_keeps_the_fewest_that_reach_it_even_where_all_tie(top_p: float, n_kept: int) -> None:
    got = distribution(torch.full((4,), 7.0), Sampling(top_p=top_p))
    assert sorted(got.tolist()) == [0] * (4 - n_kept) + [pytest.approx(1 / n_kept)] * n_kept


def test_min_p_keeps_what_reaches_its_share_exactly() -> None:
    got = distribution(torch.tensor([4.0, 2.0, 1.0, 4.0]).log(), Sampling(min_p=0.5))
    torch.testing.assert_close(got, torch.tensor([0.4, 0.2, 0, 0.4]))


def test_filters_see_what_the_ones_before_left() -> None:
    """Of .5 .3 .2, two are left by top_k; the better of them is then .625, and enough for .6."""
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    assert distribution(logits, Sampling(top_k=2, top_p=0.6)).tolist() == [1, 0, 0]
    assert distribution(logits, Sampling(top_p=0.6))[1] > 0
    # a temperature of a half turns .5 .3 .2 into 25 9 4
    assert distribution(logits, Sampling(0.5, min_p=0.38)).tolist() == [1, 0, 0]
    assert (distribution(logits, Sampling(1.0, min_p=0.38)) > 0).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-1.0, -1e-9, math.inf, -math.inf, math.nan)),
        *(("top_k", value) for value in (0, -3)),
        *(("top_p", value) for value in (0.0, -0.1, 1.5, math.nan)),
        *(("min_p", value) for value in (-0.1, 1.1, math.nan)),
    ],
)
def test_a_value_out_of_its_range_is_named_in_one_line(name: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        Sampling()._replace(**{name: value}).check()
    said = str(caught.value)
    assert said.startswith(f"{name}={value}: must be ")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "sampling",
    [
        *COMBINATIONS,
        Sampling(0),
        Sampling(1e-9, 1, 1e-9, 0.0),
        Sampling(1e9, min_p=1),
    ],
)
def test_a_value_in_its_range_is_taken(sampling: Sampling) -> None:
    sampling.check()


def test_draws_follow_weights_that_need_not_sum_to_one() -> None:
    weights = torch.tensor([[0.1, 0.0, 0.5, 0.3, 0.0], [9.0, 1.0, 0.0, 6.0, 4.0]])
    n = 20_000
    drawn = draw(weights.repeat_interleave(n, dim=0), torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.int64
    for ids, row in zip(drawn.view(2, n), weights, strict=True):
        assert chi_square(ids.bincount(minlength=5), row / row.sum()) > 1e-3


def test_draws_come_from_the_generator_alone() -> None:
    weights = torch.rand(50, 7)
    before = torch.get_rng_state()
    first, again, other = (
        draw(weights, torch.Generator().manual_seed(seed)).tolist() for seed in (3, 3, 4)
    )
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), before)
