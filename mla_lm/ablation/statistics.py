"""Arms compared over seeds: mean, standard deviation, paired differences and their intervals.

Seeds are paired, for a seed gives every arm the same order of the same data. Intervals are
Student's for the mean of paired differences, one comparison each.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mla_lm.ablation.results import Run

METRICS = {"val/exact_match": "higher", "val/bpb": "lower"}  # and what is better


class Spread(NamedTuple):
    """Mean and sample standard deviation; NaN where there are too few values."""

    mean: float
    sd: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of any number of values."""
        mean = statistics.mean(values) if values else math.nan
        return cls(mean, statistics.stdev(values) if len(values) > 1 else math.nan)


class Comparison(NamedTuple):
    """An arm less the reference, over the seeds that both have finished.

    The interval is NaN where it was not asked for, or where fewer than two seeds are shared.
    """

    metric: str
    arm: str
    reference: str
    seeds: tuple[int, ...]
    mean: float
    reference_mean: float
    difference: float
    low: float
    high: float
    confidence: float | None

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `not distinguishable`, or `no interval`."""
        if math.isnan(self.low):
            return "no interval"
        if self.low <= 0 <= self.high:
            return "not distinguishable"
        return "better" if (self.high < 0) == (METRICS[self.metric] == "lower") else "worse"

    @property
    def sentence(self) -> str:
        """The verdict in words and numbers."""
        n_seeds = f"{len(self.seeds)} paired seed{'' if len(self.seeds) == 1 else 's'}"
        if not self.seeds:
            return f"{self.arm} has no finished seed in common with {self.reference}."
        numbers = (
            f"{self.metric} {self.mean:.4f} against {self.reference_mean:.4f}, "
            f"difference {self.difference:+.4f}"
        )
        if self.verdict == "no interval":
            reason = "no interval was asked for"
            if self.confidence is not None:
                reason = "too few for a confidence interval"
            return f"{self.arm} against {self.reference}: {numbers} over {n_seeds}; {reason}."
        interval = f"{100 * self.confidence:g} % CI [{self.low:+.4f}, {self.high:+.4f}]"  # type: ignore[operator]
        words = {
            "better": f"{self.arm} is better than {self.reference}",
            "worse": f"{self.arm} is worse than {self.reference}",
            "not distinguishable": f"{self.arm} is not distinguishable from {self.reference} "
            "at this budget",
        }
        return f"{words[self.verdict]}: {numbers} ({interval}, {n_seeds})."


def best_rates(runs: Sequence[Run]) -> dict[str, float]:
    """The learning rate of each arm: of its lowest finished seed, the lowest validation loss.

    An arm without a finished run has none.
    """
    found: dict[str, float] = {}
    for arm in dict.fromkeys(run.arm for run in runs):
        finished = [run for run in runs if run.arm == arm and run.finished]
        first = min((run.seed for run in finished), default=None)
        swept = [run for run in finished if run.seed == first]
        if swept:
            found[arm] = min(swept, key=lambda run: (run.val_loss, run.lr)).lr
    return found


def chosen(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The finished runs of each arm at its best learning rate, one a seed, in order of seeds."""
    rates = best_rates(runs)
    found: dict[str, list[Run]] = {}
    for arm in dict.fromkeys(run.arm for run in runs):
        by_seed: dict[int, Run] = {}
        for run in runs:
            if run.arm == arm and run.finished and run.lr == rates[arm]:
                by_seed.setdefault(run.seed, run)
        found[arm] = [by_seed[seed] for seed in sorted(by_seed)]
    return found


def compare(
    arms: Mapping[str, Sequence[Run]],
    arm: str,
    *,
    reference: str,
    metric: str,
    confidence: float | None = 0.95,
) -> Comparison:
    """One of the arms that `chosen` gives against another; UserError without scipy."""
    ours, theirs = (
        {run.seed: run.final[metric] for run in arms.get(name, ()) if metric in run.final}
        for name in (arm, reference)
    )
    seeds = tuple(sorted(ours.keys() & theirs.keys()))
    difference, sd = Spread.of([ours[seed] - theirs[seed] for seed in seeds])
    half = math.nan
    if confidence is not None and len(seeds) > 1:
        half = _quantile(confidence, len(seeds) - 1) * sd / math.sqrt(len(seeds))
    return Comparison(
        metric=metric,
        arm=arm,
        reference=reference,
        seeds=seeds,
        mean=Spread.of([ours[seed] for seed in seeds]).mean,
        reference_mean=Spread.of([theirs[seed] for seed in seeds]).mean,
        difference=difference,
        low=difference - half,
        high=difference + half,
        confidence=confidence,
    )


def _quantile(confidence: float, freedom: int) -> float:
    """Of Student's t: so many standard errors on either side hold `confidence`."""
    from scipy import stats

    return float(stats.t.ppf((1 + confidence) / 2, freedom))
