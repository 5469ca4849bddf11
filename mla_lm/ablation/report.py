"""The report of a study: two tables for machines, a text, and a page that opens offline.

The same runs make the same bytes. `results.csv` holds nothing that a clock has measured, so that a
study that was killed and resumed ends with the same file as one that was not.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import pandas as pd
from markupsafe import Markup
from matplotlib.ticker import EngFormatter
from pandas import DataFrame, Series

from mla_lm.ablation.budget import Axes
from mla_lm.ablation.figures import draw
from mla_lm.ablation.runs import SPEEDS, Runs, graded_by
from mla_lm.ablation.statistics import NO_INTERVAL, Comparison, best_rates, chosen, compare
from mla_lm.ablation.study import Study
from mla_lm.config.secret import hidden
from mla_lm.errors import visible
from mla_lm.evaluation.markup import fenced, in_csv, in_markdown
from mla_lm.files import mark, write_text

RUN = ["run", "arm", "seed", "lr"]
RESULTS = [*RUN, "finished", "steps", "tokens", "val/loss", "val/bpb", "val/exact_match"]
RESULTS += [*Axes._fields, "total_train_flops"]
COSTS = [*RUN, "tokens_per_second", "step_seconds", "training_seconds", "peak_memory"]
NOTE = (
    "Each interval stands for one comparison: among many arms some will differ by chance. It "
    "speaks of seeds only, not of other data, sizes or budgets."
)
OF_ARMS = "Mean and standard deviation over the finished seeds at each arm's best learning rate."
OF_KEYS = "Every key that is not the same in all arms, solved widths among them."


def write_report(
    out: Path, runs: Runs, study: Study, *, command: str, failed: Sequence[str] = (), jobs: int = 1
) -> None:
    """Write `results.csv`, `costs.csv`, `report.md` and `report.html` into `out`.

    `failed` names cells and why, `jobs` are the cells at a time while costs were measured.
    """
    mark(out)
    best = chosen(runs.table)
    best = best.sort_values("arm", key=lambda arm: arm != study.reference, kind="stable")
    compared = compare(best, reference=study.reference, confidence=study.confidence)
    links = [
        quote(os.fsencode(os.path.relpath(folder, out.resolve()))) + "/"
        for folder in runs.table.folder
    ]
    content = {
        "title": out.resolve().name,
        "question": hidden(study.question),
        "command": hidden(command),
        "outcome": [
            *((one.verdict, one.sentence) for one in compared),
            *(("", caution) for caution in cautions(runs, best, compared, study, jobs)),
            *(("worse", f"Failed: {reason}") for reason in failed),
        ],
        "figures": draw(best, runs.curves, compared, study.reference),
        "tables": [
            ("Arms", OF_ARMS, _arms(best, compared)),
            ("What differs", OF_KEYS, _differing(runs.settings, best)),
            ("Runs", "Each links to its folder.", _runs(runs.table)),
        ],
        "environments": [text for text in runs.table.environment.unique() if text],
        "links": dict(zip(runs.table.run, links, strict=True)),
    }
    speeds = [name for name in runs.table if name.startswith(SPEEDS)]
    finished = runs.table.status.eq("finished").map({True: "yes", False: "no"})
    files = {
        "results.csv": _csv(runs.table.assign(finished=finished)[RESULTS]),
        "costs.csv": _csv(runs.table[[*COSTS, *speeds]]),
        "report.md": _rendered("report.md.j2", content),
        "report.html": _rendered("report.html.j2", content),
    }
    for name, text in files.items():
        write_text(out / name, text)
    print(f"report {out / 'report.html'}")


def _rendered(name: str, content: Mapping[str, Any]) -> str:
    """A template with every value escaped: names are data."""
    is_page = name.endswith(".html.j2")
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=is_page,
        finalize=_in_page if is_page else _in_text,
        lstrip_blocks=True,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["fenced"] = lambda text: Markup(fenced(visible(text)))
    return templates.get_template(name).render(content)


def _in_page(value: object) -> str:
    return visible(str(value))


def _in_text(value: object) -> str:
    return value if isinstance(value, Markup) else in_markdown(value)


def _csv(table: DataFrame) -> str:
    named = table.rename(columns=lambda name: in_csv(name.replace("val/", "val_")))
    named = named.map(lambda cell: in_csv(cell) if isinstance(cell, str) else cell)
    return str(named.convert_dtypes().to_csv(index=False, float_format="%.8g", lineterminator="\n"))


def cautions(
    runs: Runs, best: DataFrame, compared: Sequence[Comparison], study: Study, jobs: int
) -> Iterator[str]:
    """What must be known to read the verdicts, and what the numbers leave out."""
    if study.reference not in {*best.arm}:
        yield f"The reference {study.reference} has no finished run: nothing is compared."
    if any(one.verdict != NO_INTERVAL for one in compared):
        yield NOTE
    if study.match != "none" and len(best):
        apart = best[study.match].max() / best[study.match].min() - 1
        yield f"Matched on {study.match}: highest and lowest {100 * apart:.1f} % apart."
    rates = best_rates(runs.table)
    for arm, mine in runs.table.groupby("arm"):
        lost = mine[mine.status != "finished"]
        if len(lost):
            yield f"{arm} is compared without {', '.join(lost.run + ' (' + lost.status + ')')}."
        if mine.lr.nunique() > 1 and rates.get(arm) in (mine.lr.min(), mine.lr.max()):
            yield f"The best learning rate of {arm}, {rates[arm]:g}, is at the end of its grid."
    read = runs.settings.filter(regex=r"^data\.|^trainer\.(max_steps|accumulate)")
    if len(read.drop_duplicates()) > 1:
        yield "Runs differ in data, rows or steps: the same seed does not give them the same data."
    if runs.table.duplicated(["arm", "seed"]).any():
        yield "The first seed has chosen the learning rates and is compared too, which flatters."
    if jobs > 1:
        yield f"Times and memory were measured with {jobs} cells at a time."


def _arms(best: DataFrame, compared: Sequence[Comparison]) -> DataFrame:
    found = {(one.arm, one.metric): one for one in compared}
    rows = []
    for arm, mine in best.groupby("arm", sort=False):
        row = {"arm": arm, "seeds": " ".join(map(str, mine.seed))}
        for metric in graded_by(best):
            one = found.get((arm, metric))
            row[metric] = _spread(mine[metric])
            row[f"{metric}: difference"] = one.shown if one else "reference"
            row[f"{metric}: verdict"] = one.verdict if one else ""
        row |= {"val/loss": _spread(mine["val/loss"])}
        row |= {axis: quantity(mine[axis].iloc[0]) for axis in Axes._fields}
        row["ms per step"] = number(1000 * mine.step_seconds.median(), 1)
        row["peak MiB"] = number(mine.peak_memory.median() / 2**20, 0)
        rows.append(row)
    return DataFrame(rows)


def _differing(settings: DataFrame, best: DataFrame) -> DataFrame:
    arms = best.drop_duplicates("arm")
    found = settings.loc[arms.run].set_axis(arms.arm)
    return found.loc[:, found.nunique() > 1].T.rename_axis("key").reset_index()


def _runs(table: DataFrame) -> DataFrame:
    return DataFrame(
        {
            "run": table.run,
            "arm": table.arm,
            "seed": table.seed.astype(str),
            "lr": table.lr.map("{:g}".format),
            "status": table.status,
            "tokens": table.tokens.map(quantity),
            **{metric: table[metric].map(number) for metric in [*graded_by(table), "val/loss"]},
            "tokens/s": [number(value, 0) for value in table.tokens_per_second],
            "minutes": [number(value / 60, 1) for value in table.training_seconds],
            "peak MiB": [number(value / 2**20, 0) for value in table.peak_memory],
        }
    )


def number(value: float, digits: int = 4) -> str:
    """With thousands separated; a dash for NaN."""
    return "-" if pd.isna(value) else f"{value:,.{digits}f}"


def quantity(value: float) -> str:
    """A count with a suffix: 3.90M."""
    return str(EngFormatter(places=2 if value >= 1e4 else 0, sep="")(value))


def _spread(values: Series) -> str:
    spread = "" if values.count() < 2 else f" ± {values.std():.4f}"
    return number(values.mean()) + spread
