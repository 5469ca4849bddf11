"""Means, paired differences and what is said of them."""

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from scipy import stats

from mla_lm.ablation.results import Point, Run
from mla_lm.ablation.statistics import Comparison, Spread, best_rates, chosen, compare
from tests.ablation.folders import config


def made(arm: str, seed: int, bpb: float | None, *words: str, match: float = 0.0) -> Run:
    """A run with these final figures; None: unfinished."""
    cfg = config(*words).model_copy(update={"seed": seed})
    figures = {} if bpb is None else {"val/loss": 2 * bpb, "val/bpb": bpb, "val/exact_match": match}
    curve = () if bpb is None else (Point(40, 1, 1.0, 1.0, figures),)
    return Run("", arm, Path(), cfg, curve, (), {}, None, None, {}, {})


def arms(**figures: Mapping[int, float]) -> dict[str, Sequence[Run]]:
    return {
        arm: [made(arm, seed, value, match=value) for seed, value in by_seed.items()]
        for arm, by_seed in figures.items()
    }


def against_b(
    a: Mapping[int, float], b: Mapping[int, float], metric: str = "val/bpb", **rest: float | None
) -> Comparison:
    return compare(arms(a=a, b=b), "a", reference="b", metric=metric, **rest)


def test_spread() -> None:
    assert Spread.of([1.0, 2.0, 6.0]) == (3.0, pytest.approx(math.sqrt(7)))
    assert Spread.of([2.0]).mean == 2.0
    assert math.isnan(Spread.of([2.0]).sd)
    assert math.isnan(Spread.of([]).mean)


def test_interval_by_hand() -> None:
    found = against_b({1: 1.1, 2: 1.3}, {1: 1.0, 2: 1.0})
    half = 12.706204736 * math.sqrt(0.02) / math.sqrt(2)  # t(0.975, 1)
    assert found.difference == pytest.approx(0.2)
    assert (found.low, found.high) == (pytest.approx(0.2 - half), pytest.approx(0.2 + half))
    assert found.sentence == (
        "a is not distinguishable from b at this budget: val/bpb 1.2000 against 1.0000, "
        "difference +0.2000 (95 % CI [-1.0706, +1.4706], 2 paired seeds)."
    )


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_interval_is_that_of_scipy(confidence: float) -> None:
    rng = random.Random(3)
    a, b = ({seed: rng.gauss(1, 0.1) for seed in range(5)} for _ in range(2))
    shuffled = dict(reversed(b.items()))  # pairs are of seeds, not of places
    found = against_b(a, shuffled, confidence=confidence)
    expected = stats.ttest_rel([*a.values()], [*b.values()]).confidence_interval(confidence)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


@pytest.mark.parametrize(
    ("metric", "shift", "verdict"),
    [
        ("val/bpb", -0.1, "better"),
        ("val/bpb", 0.1, "worse"),
        ("val/exact_match", -0.1, "worse"),
        ("val/exact_match", 0.1, "better"),
        ("val/bpb", 0.0, "not distinguishable"),
    ],
)
def test_verdict(metric: str, shift: float, verdict: str) -> None:
    noise = {1: 0.001, 2: -0.001, 3: 0.0}
    found = against_b(
        {s: 1 + shift + n for s, n in noise.items()}, dict.fromkeys(noise, 1.0), metric
    )
    assert found.verdict == verdict
    assert found.sentence.startswith(f"a is {verdict} ")


def test_one_shared_seed_has_no_interval() -> None:
    found = against_b({1: 1.0, 2: 1.2}, {2: 1.1, 3: 9.0})
    assert (found.seeds, found.verdict) == ((2,), "no interval")
    assert found.sentence == (
        "a against b: val/bpb 1.2000 against 1.1000, difference +0.1000 over 1 paired seed; "
        "too few for a confidence interval."
    )


def test_no_shared_seed_and_none_asked_for() -> None:
    assert "no finished seed in common" in against_b({1: 1.0}, {2: 1.0}).sentence
    found = compare(arms(a={1: 1.0}), "a", reference="elsewhere", metric="val/bpb")
    assert "no finished seed in common" in found.sentence
    twice = {1: 1.0, 2: 1.2}
    assert "no interval was asked for" in against_b(twice, twice, confidence=None).sentence


def test_best_learning_rate_is_that_of_the_first_seed() -> None:
    low, high = "optim.lr=0.001", "optim.lr=0.01"
    runs = [
        made("a", 1, 1.2, low),
        made("a", 1, 1.1, high),
        made("a", 2, 1.15, high),
        made("a", 2, 1.0, low),  # a lower loss, but not on the first seed
        made("a", 3, None, high),
        made("b", 1, None, low),
    ]
    assert best_rates(runs) == {"a": 0.01}
    assert chosen(runs) == {"a": [runs[1], runs[2]], "b": []}
