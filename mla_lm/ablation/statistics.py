"""Arms compared over seeds: mean, standard deviation, paired differences and their intervals.

Seeds are paired, for a seed gives every arm the same data in the same order. Intervals are
Student's for the mean of paired differences, one comparison each. Takes pandas frames with a row
per run (`runs.Runs.table`); anything else that is computed from seeds belongs here.
"""

import math
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from mla_lm.ablation.runs import METRICS, graded_by

if TYPE_CHECKING:
    from pandas import DataFrame

PHRASES = {
    "better": "is better than",
    "worse": "is worse than",
    "not distinguishable": "is not distinguishable at this budget from",
    "no interval": "has no interval against",
}


class Comparison(NamedTuple):
    """An arm less the reference, over the seeds that both have finished.

    The interval is NaN where it was not asked for, or where fewer than two seeds are shared.
    """

    metric: str
    arm: str
    reference: str
    n_seeds: int
    mean: float
    reference_mean: float
    low: float
    high: float
    confidence: float | None

    @property
    def difference(self) -> float:
        """Of the means."""
        return self.mean - self.reference_mean

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `not distinguishable`, or `no interval`."""
        if math.isnan(self.low):
            return "no interval"
        if self.low <= 0 <= self.high:
            return "not distinguishable"
        return "better" if (self.high < 0) == (METRICS[self.metric] == "lower") else "worse"

    @property
    def shown(self) -> str:
        """The difference with its interval."""
        interval = f" [{self.low:+.4f}, {self.high:+.4f}]"
        return f"{self.difference:+.4f}" + interval * (self.verdict != "no interval")

    @property
    def sentence(self) -> str:
        """The verdict in words and numbers."""
        interval = f"; {100 * (self.confidence or 0):g} % CI" * (self.verdict != "no interval")
        return (
            f"{self.arm} {PHRASES[self.verdict]} {self.reference}: {self.metric} {self.mean:.4f} "
            f"against {self.reference_mean:.4f}, difference {self.shown} "
            f"({self.n_seeds} paired seed{'s' * (self.n_seeds != 1)}{interval})."
        )


def best_rates(runs: "DataFrame") -> dict[str, float]:
    """The learning rate of each arm: of its lowest finished seed, the lowest validation loss.

    An arm without a finished run has none.
    """
    finished = runs[runs.status == "finished"]
    first = finished[finished.seed == finished.groupby("arm").seed.transform("min")]
    best = first.sort_values(["val/loss", "lr"]).drop_duplicates("arm")
    return dict(zip(best.arm, best.lr, strict=True))


def chosen(runs: "DataFrame") -> "DataFrame":
    """The finished runs of each arm at its best learning rate, one per seed."""
    best = runs.lr == runs.arm.map(best_rates(runs))
    return runs[best & (runs.status == "finished")].drop_duplicates(["arm", "seed"])


def compare(
    runs: "DataFrame", *, reference: str, confidence: float | None = 0.95
) -> list[Comparison]:
    """Every arm with the reference by every metric, of the runs that `chosen` gives."""
    found = []
    for metric in graded_by(runs):
        by_arm = runs.pivot(index="seed", columns="arm", values=metric)
        for arm in runs.arm.unique():
            pairs = by_arm.reindex(columns=[arm, reference]).dropna().to_numpy()
            if arm != reference and len(pairs):
                mean, other = map(float, pairs.mean(axis=0))
                low, high = _interval(*pairs.T, confidence=confidence)
                about = (metric, arm, reference, len(pairs))
                found.append(Comparison(*about, mean, other, low, high, confidence))
    return found


def _interval(ours: Any, theirs: Any, *, confidence: float | None) -> tuple[float, float]:
    """Student's, of the mean paired difference; NaN where not asked for, or for a single pair."""
    from scipy import stats

    if confidence is None or len(ours) < 2:
        return math.nan, math.nan
    with warnings.catch_warnings(action="ignore"):  # of differences that are all equal
        found = stats.ttest_rel(ours, theirs).confidence_interval(confidence)
    return float(found.low), float(found.high)
