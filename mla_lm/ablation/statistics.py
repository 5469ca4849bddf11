"""Arms compared over seeds: mean, standard deviation, paired differences and their intervals.

Seeds are paired, for a seed gives every arm the same data in the same order. Intervals are
Student's for the mean of paired differences, one comparison each. Takes pandas frames with a row
per run (`runs.Runs.table`); anything else that is computed from seeds belongs here.
"""

import math
import warnings
from typing import NamedTuple

from pandas import DataFrame
from scipy import stats

from mla_lm.ablation.runs import METRICS, graded_by

NO_INTERVAL = "no interval"
PHRASES = {
    "better": "is better than",
    "worse": "is worse than",
    "not distinguishable": "is not distinguishable at this budget from",
    NO_INTERVAL: "has no interval against",
}


class Comparison(NamedTuple):
    """An arm less the reference, over the seeds that both have finished.

    The interval is NaN where it was not asked for, or where fewer than two seeds are shared.
    """

    metric: str
    arm: str
    difference: float  # of the means
    low: float
    high: float
    verdict: str  # a key of PHRASES
    shown: str  # the difference with its interval
    sentence: str  # the verdict in words and numbers


def best_rates(runs: DataFrame) -> dict[str, float]:
    """The learning rate of each arm: of its lowest finished seed, the lowest validation loss.

    An arm without a finished run has none.
    """
    finished = runs[runs.status == "finished"]
    first = finished[finished.seed == finished.groupby("arm").seed.transform("min")]
    best = first.sort_values(["val/loss", "lr"]).drop_duplicates("arm")
    return dict(zip(best.arm, best.lr, strict=True))


def chosen(runs: DataFrame) -> DataFrame:
    """The finished runs of each arm at its best learning rate, one per seed."""
    best = runs.lr == runs.arm.map(best_rates(runs))
    return runs[best & (runs.status == "finished")].drop_duplicates(["arm", "seed"])


def compare(
    runs: DataFrame, *, reference: str, confidence: float | None = 0.95
) -> list[Comparison]:
    """Every arm with the reference by every metric, of the runs that `chosen` gives."""
    found = []
    for metric in graded_by(runs):
        by_arm = runs.pivot(index="seed", columns="arm", values=metric)
        for arm in runs.arm.unique():
            pairs = by_arm.reindex(columns=[arm, reference]).dropna()
            if arm != reference and len(pairs):
                found.append(_comparison(metric, pairs, confidence))
    return found


def _comparison(metric: str, pairs: DataFrame, confidence: float | None) -> Comparison:
    arm, reference = pairs
    mean, other = pairs.mean()
    difference, low, high = mean - other, math.nan, math.nan
    shown, about = f"{difference:+.4f}", f"{len(pairs)} paired seed{'s' * (len(pairs) != 1)}"
    verdict = NO_INTERVAL
    if confidence is not None and len(pairs) > 1:
        with warnings.catch_warnings(action="ignore"):  # of differences that are all equal
            test = stats.ttest_rel(pairs[arm], pairs[reference])
            low, high = test.confidence_interval(confidence)
        lower_is_better = METRICS[metric] == "lower"
        verdict = "better" if (high < 0) == lower_is_better else "worse"
        verdict = "not distinguishable" if low <= 0 <= high else verdict
        shown += f" [{low:+.4f}, {high:+.4f}]"
        about += f"; {100 * confidence:g} % CI"
    sentence = (
        f"{arm} {PHRASES[verdict]} {reference}: {metric} {mean:.4f} against {other:.4f}, "
        f"difference {shown} ({about})."
    )
    return Comparison(metric, arm, difference, low, high, verdict, shown, sentence)
