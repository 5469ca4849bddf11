"""From logits to probabilities and ids, against the warpers of transformers."""

import math

import pytest
import torch
from torch import Tensor

from mla_lm.generation import Sampling
from mla_lm.generation.sampling import choose, distribution, draw
from tests.generation.conftest import chi_square

COMBINATIONS = [
    Sampling(),
    Sampling(0.3),
    Sampling(top_k=40),
    Sampling(top_p=0.01),
    Sampling(top_p=0.6),
    Sampling(min_p=0.4),
    Sampling(2.5, top_k=9, top_p=0.9, min_p=0.15),
    Sampling(0.9, top_p=0.95, min_p=0.1),
]


def rows(*, seed: int, n_ids: int = 13) -> Tensor:
    return 3 * torch.randn(40, n_ids, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sampling", COMBINATIONS, ids=str)
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
    got = distribution(logits, sampling)
    torch.testing.assert_close(got, scores.softmax(dim=-1))
    folded = distribution(logits.unflatten(0, (5, 8)), sampling)
    torch.testing.assert_close(folded.flatten(0, 1), got)
    assert torch.equal(logits, rows(seed=2))
    rounded = logits.bfloat16()
    assert torch.equal(distribution(rounded, sampling), distribution(rounded.float(), sampling))


INF = math.inf


@pytest.mark.parametrize(
    ("temperature", "logits", "expected"),
    [
        (0.0, [2.0, 64.0, 64.0], [0, 1, 0]),  # the first of the best
        *((t, [2.0, 64.0, 63.0], [0, 1, 0]) for t in (5e-324, 1e-40, 1e-3)),
        *((t, [-64.0, -63.0, -INF], [0, 1, 0]) for t in (0.0, 5e-324, 1e-40, 1e-3)),
        *((t, [2.0, 90.0, -INF], [0.5, 0.5, 0]) for t in (1e10, 1e39, 1.7e308)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_temperatures_from_greedy_to_uniform(
    temperature: float, logits: list[float], expected: list[float], dtype: torch.dtype
) -> None:
    got = distribution(torch.tensor([logits], dtype=dtype), Sampling(temperature))
    torch.testing.assert_close(got, torch.tensor([expected], dtype=torch.float32))


@pytest.mark.parametrize(
    ("weights", "sampling", "expected"),
    [
        ([8.0, 1.0, 8.0, 8.0], Sampling(top_k=2), [1, 0, 1, 1]),  # ties with the last stay
        ([1.0] * 4, Sampling(top_p=0.25), [1, 0, 0, 0]),  # the fewest that reach it
        ([1.0] * 4, Sampling(top_p=0.26), [1, 1, 0, 0]),
        ([4.0, 2.0, 1.0, 4.0], Sampling(min_p=0.5), [4, 2, 0, 4]),  # exactly half stays
        ([0.5, 0.3, 0.2], Sampling(top_k=2, top_p=0.6), [1, 0, 0]),  # of .625 .375
        ([0.5, 0.3, 0.2], Sampling(top_p=0.6), [5, 3, 0]),
        ([0.5, 0.3, 0.2], Sampling(0.5, min_p=0.38), [1, 0, 0]),  # of 25 9 4
        ([0.5, 0.3, 0.2], Sampling(1.0, min_p=0.38), [5, 3, 2]),
    ],
)
def test_filters_by_hand(weights: list[float], sampling: Sampling, expected: list[float]) -> None:
    got = distribution(torch.tensor(weights).log(), sampling)
    shares = torch.tensor(expected, dtype=torch.float32) / sum(expected)
    torch.testing.assert_close(got.sort().values, shares.sort().values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-1e-9, math.inf, math.nan)),
        *(("top_k", value) for value in (0, -3)),
        *(("top_p", value) for value in (0.0, 1.5, math.nan)),
        *(("min_p", value) for value in (-0.1, 1.1, math.nan)),
    ],
)
def test_a_value_out_of_its_range_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"(?s)Sampling\n{name}.*input_value={value}"):
        Sampling(**{name: value})


def test_draws_follow_weights_that_need_not_sum_to_one() -> None:
    weights = torch.tensor([[0.1, 0.0, 0.5, 0.3, 0.0], [9.0, 1.0, 0.0, 6.0, 4.0]])
    n = 20_000
    before = torch.get_rng_state()
    drawn = draw(weights.repeat_interleave(n, dim=0), torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert drawn.dtype == torch.int64
    for ids, row in zip(drawn.view(2, n), weights, strict=True):
        assert chi_square(ids.bincount(minlength=5), row / row.sum()) > 1e-3


@pytest.mark.parametrize("how", [Sampling(0), Sampling(0.8, top_k=3)], ids=["greedy", "sampled"])
def test_what_is_chosen_comes_with_its_distribution(how: Sampling) -> None:
    logits = rows(seed=1)
    ids, probabilities = choose(logits, how, torch.Generator().manual_seed(2))
    assert torch.equal(probabilities, distribution(logits, how))
    assert torch.equal(ids, draw(probabilities, torch.Generator().manual_seed(2)))
