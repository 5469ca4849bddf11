"""The tables of a report: frames of text, made of the frames of its runs."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mla_lm.ablation.budget import Axes
from mla_lm.ablation.runs import Runs, graded_by
from mla_lm.ablation.statistics import Comparison

if TYPE_CHECKING:
    from pandas import DataFrame, Series


class Table(NamedTuple):
    """Rows of text."""

    title: str
    note: str
    rows: "DataFrame"


def tables(runs: Runs, best: "DataFrame", compared: Sequence[Comparison]) -> Iterator[Table]:
    """All of a report; `best` as `statistics.chosen` gives it."""
    note = "Mean and standard deviation over the finished seeds at each arm's best learning rate."
    yield Table("Arms", note, _arms(best, compared))
    note = "Every key that is not the same in all arms, solved widths among them."
    yield Table("What differs", note, _differing(runs.settings, best))
    yield Table("Runs", "Each links to its folder.", _runs(runs.table))


def _arms(best: "DataFrame", compared: Sequence[Comparison]) -> "DataFrame":
    import pandas as pd

    rows = []
    for arm, mine in best.groupby("arm", sort=False):
        row = {"arm": arm, "seeds": " ".join(map(str, mine.seed))}
        for metric in graded_by(best):
            one = next((one for one in compared if (one.arm, one.metric) == (arm, metric)), None)
            row[metric] = _spread(mine[metric])
            row[f"{metric}: difference"] = one.shown if one else "reference"
            row[f"{metric}: verdict"] = one.verdict if one else ""
        row |= {"val/loss": _spread(mine["val/loss"])}
        row |= {axis: quantity(mine[axis].iloc[0]) for axis in Axes._fields}
        row["ms per step"] = number(1000 * mine.step_seconds.median(), 1)
        row["peak MiB"] = number(mine.peak_memory.median() / 2**20, 0)
        rows.append(row)
    return pd.DataFrame(rows)


def _differing(settings: "DataFrame", best: "DataFrame") -> "DataFrame":
    arms = best.drop_duplicates("arm")
    found = settings.loc[arms.run].set_axis(arms.arm)
    return found.loc[:, found.nunique() > 1].T.rename_axis("key").reset_index()


def _runs(table: "DataFrame") -> "DataFrame":
    numbers = {
        **{metric: table[metric].map(number) for metric in [*graded_by(table), "val/loss"]},
        "tokens/s": table.tokens_per_second.map(lambda value: number(value, 0)),
        "minutes": (table.training_seconds / 60).map(lambda value: number(value, 1)),
        "peak MiB": (table.peak_memory / 2**20).map(lambda value: number(value, 0)),
    }
    shown = table[["run", "arm", "seed"]].astype(str)
    rates = table.lr.map("{:g}".format)
    return shown.assign(lr=rates, status=table.status, tokens=table.tokens.map(quantity), **numbers)


def number(value: float, digits: int = 4) -> str:
    """With thousands separated; a dash for NaN."""
    return "-" if value != value else f"{value:,.{digits}f}"


def quantity(value: float) -> str:
    """A count with a suffix: 3.90M."""
    from matplotlib.ticker import EngFormatter

    return str(EngFormatter(places=2 if value >= 1e4 else 0, sep="")(value))


def _spread(values: "Series") -> str:
    spread = "" if values.count() < 2 else f" ± {values.std():.4f}"
    return number(values.mean()) + spread
