"""The report of a study: two tables for machines, a text, and a page that opens offline.

The same runs make the same bytes. `results.csv` holds nothing that a clock has measured, so that a
study that was killed and resumed ends with the same file as one that was not.
"""

import importlib.util
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mla_lm.ablation.budget import Axes
from mla_lm.ablation.figures import draw
from mla_lm.ablation.runs import SPEEDS, Runs
from mla_lm.ablation.statistics import Comparison, best_rates, chosen, compare
from mla_lm.ablation.study import Study
from mla_lm.ablation.tables import tables
from mla_lm.errors import UserError
from mla_lm.files import replacing

if TYPE_CHECKING:
    from pandas import DataFrame

RUN = ["run", "arm", "seed", "lr"]
RESULTS = [*RUN, "finished", "steps", "tokens", "val/loss", "val/bpb", "val/exact_match"]
RESULTS += [*Axes._fields, "total_train_flops"]
COSTS = [*RUN, "tokens_per_second", "step_seconds", "training_seconds", "peak_memory"]
NOTE = (
    "Each interval stands for one comparison: among many arms some will differ by chance. It "
    "speaks of seeds only, not of other data, sizes or budgets."
)


def require_extra() -> None:
    """UserError without the packages of the extra `report`."""
    for name in ("jinja2", "pandas", "scipy", "seaborn"):
        if importlib.util.find_spec(name) is None:
            raise UserError('ablate: pip install "mla_lm[report]"')


def write_report(
    out: Path, runs: Runs, study: Study, *, command: str, failed: Sequence[str] = (), jobs: int = 1
) -> None:
    """Write `results.csv`, `costs.csv`, `report.md` and `report.html` into `out`.

    `failed` names cells and why, `jobs` are the cells at a time while costs were measured.
    """
    best = chosen(runs.table)
    best = best.sort_values("arm", key=lambda arm: arm != study.reference, kind="stable")
    compared = compare(best, reference=study.reference, confidence=study.confidence)
    folders = runs.table.set_index("run").folder
    content = {
        "title": out.resolve().name,
        "question": study.question,
        "command": command,
        "failed": failed,
        "outcome": [
            *outcome(best, compared, study),
            *(("", caution) for caution in cautions(runs, jobs)),
        ],
        "figures": draw(best, runs.curves, compared, study.reference),
        "tables": [table for table in tables(runs, best, compared) if len(table.rows)],
        "environments": [text for text in runs.table.environment.unique() if text],
        "links": {run: _link(folder, out) for run, folder in folders.items()},
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
        with replacing(out / name) as path:
            path.write_text(text, encoding="utf-8", newline="\n")
    print(f"report {out / 'report.html'}")


def _csv(table: "DataFrame") -> str:
    named = table.rename(columns=lambda name: name.replace("val/", "val_"))
    return str(named.convert_dtypes().to_csv(index=False, float_format="%.8g", lineterminator="\n"))


def _rendered(name: str, content: dict[str, Any]) -> str:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    escape = jinja2.select_autoescape(["html.j2"])
    environment = jinja2.Environment(loader=loader, autoescape=escape, lstrip_blocks=True)
    environment.trim_blocks = environment.keep_trailing_newline = True
    return str(environment.get_template(name).render(content))


def _link(folder: Path, out: Path) -> str:
    """A folder as a page in `out` names it."""
    path = os.path.relpath(folder.resolve(), out.resolve())
    return quote(path.replace(os.sep, "/")) + "/"


def outcome(
    best: "DataFrame", compared: Sequence[Comparison], study: Study
) -> Iterator[tuple[str, str]]:
    """Verdicts and sentences: one per comparison, then what must be known to read them."""
    yield from ((one.verdict, one.sentence) for one in compared)
    if study.reference not in {*best.arm}:
        yield "", f"The reference {study.reference} has no finished run: nothing is compared."
    if any(not math.isnan(one.low) for one in compared):
        yield "", NOTE
    if study.match != "none" and len(best):
        apart = best[study.match].max() / best[study.match].min() - 1
        yield "", f"Matched on {study.match}: highest and lowest {100 * apart:.1f} % apart."


def cautions(runs: Runs, jobs: int) -> Iterator[str]:
    """What the numbers leave out."""
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
