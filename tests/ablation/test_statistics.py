"""Means, paired differences and what is said of them."""

import math
import random
from collections.abc import Mapping
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from mla_lm.ablation.statistics import NO_INTERVAL, Comparison, best_rates, chosen, compare


def run(arm: str, seed: int, bpb: float | None, lr: float = 0.01) -> dict[str, Any]:
    """A row of the table of runs; None: unfinished."""
    loss = 2 * bpb if bpb else None
    status = "finished" if bpb else "step 0 of 9"
    figures = {"val/loss": loss, "val/bpb": bpb, "val/exact_match": None}
    return {"arm": arm, "seed": seed, "lr": lr, "status": status, **figures}


def against_b(
    a: Mapping[int, float], b: Mapping[int, float], metric: str = "val/bpb", **rest: float | None
) -> list[Comparison]:
    runs = pd.DataFrame(run(arm, s, v) for arm, of in (("a", a), ("b", b)) for s, v in of.items())
    if metric != "val/bpb":
        runs = runs.assign(**{metric: runs["val/bpb"], "val/bpb": None})
    return compare(runs, reference="b", **rest)


def test_interval_by_hand() -> None:
    (found,) = against_b({1: 1.1, 2: 1.3}, {1: 1.0, 2: 1.0})
    half = 12.706204736 * math.sqrt(0.02) / math.sqrt(2)  # t(0.975, 1)
    assert found.difference == pytest.approx(0.2)
    assert (found.low, found.high) == (pytest.approx(0.2 - half), pytest.approx(0.2 + half))
    assert found.sentence == (
        "a is not distinguishable at this budget from b: val/bpb 1.2000 against 1.0000, "
        "difference +0.2000 [-1.0706, +1.4706] (2 paired seeds; 95 % CI)."
    )


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_pairs_are_of_seeds_not_of_places(confidence: float) -> None:
    rng = random.Random(3)
    a, b = ({seed: rng.gauss(1, 0.1) for seed in range(5)} for _ in range(2))
    differences = [a[seed] - b[seed] for seed in a]
    (found,) = against_b(a, dict(reversed(b.items())), confidence=confidence)
    expected = stats.ttest_1samp(differences, 0).confidence_interval(confidence)
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
@pytest.mark.parametrize("noise", [0.001, 0.0])
def test_verdict(metric: str, shift: float, verdict: str, noise: float) -> None:
    ours = {1: 1 + shift + noise, 2: 1 + shift - noise, 3: 1 + shift}
    (found,) = against_b(ours, dict.fromkeys(ours, 1.0), metric)
    assert found.verdict == verdict


def test_too_few_seeds_and_no_interval_asked_for() -> None:
    (found,) = against_b({1: 1.0, 2: 1.2}, {2: 1.1, 3: 9.0})
    assert found.sentence == (
        "a has no interval against b: val/bpb 1.2000 against 1.1000, difference +0.1000 "
        "(1 paired seed)."
    )
    assert against_b({1: 1.0}, {2: 1.0}) == []
    assert against_b({1: 1.0, 2: 1.2}, {1: 1.0, 2: 1.3}, confidence=None)[0].verdict == NO_INTERVAL


def test_the_best_learning_rate_is_that_of_the_first_seed() -> None:
    rows = [
        run("a", 1, 1.2, 0.001),
        run("a", 1, 1.1, 0.01),
        run("a", 2, 1.15, 0.01),
        run("a", 2, 1.0, 0.001),  # a lower loss, but not on the first seed
        run("a", 3, None, 0.01),
        run("b", 1, None, 0.001),
    ]
    runs = pd.DataFrame(rows)
    assert best_rates(runs) == {"a": 0.01}
    assert [*chosen(runs).index] == [1, 2]
