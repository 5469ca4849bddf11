"""The report of a study: two tables for machines, a text, and a page that opens offline.

The same runs make the same bytes. `results.csv` holds nothing that a clock has measured, so that a
study that was killed and resumed ends with the same file as one that was not.
"""

import csv
import importlib.util
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mla_lm.ablation.plots import charts
from mla_lm.ablation.results import SPEEDS, Run
from mla_lm.ablation.statistics import Comparison, best_rates, chosen, compare
from mla_lm.ablation.tables import Cell, Table, graded_by, step_seconds, tables
from mla_lm.errors import UserError
from mla_lm.files import replacing

VALIDATION = ("val/loss", "val/bpb", "val/exact_match")
PAGE = "report.html.j2"
NOTE = (
    "Each interval stands for one comparison: among many arms some will differ by chance. It "
    "speaks of seeds only, not of other data, sizes or budgets."
)


class About(NamedTuple):
    """What was asked, and how to ask it again."""

    title: str
    question: str
    command: str
    configurations: Mapping[str, str]  # SHA-256 of each arm's, where a study has them
    reference: str  # the arm that others are compared with
    match: str  # an axis of `budget.AXES`, or `none`
    confidence: float | None = 0.95
    failed: Sequence[str] = ()  # cells, and why
    n_planned: int | None = None  # cells; None: as many as there are runs
    jobs: int = 1  # cells at a time while costs were measured


def write_report(out: Path, runs: Sequence[Run], about: About) -> None:
    """Write `results.csv`, `costs.csv`, `report.md` and `report.html` into `out`.

    Raises UserError without the extra `report`.
    """
    arms = chosen(runs)
    compared = [
        compare(arms, arm, reference=about.reference, metric=metric, confidence=about.confidence)
        for metric in graded_by(run for found in arms.values() for run in found)
        for arm in arms
        if arm != about.reference
    ]
    shown = tables(runs, arms, compared, reference=about.reference, out=out)
    files = {
        "results.csv": csv_text(map(result, ordered(runs))),
        "costs.csv": csv_text(map(cost, ordered(runs))),
        "report.md": markdown(about, outcome(runs, arms, compared, about), shown),
        "report.html": page(about, runs, arms, compared, shown),
    }
    for name, text in files.items():
        with replacing(out / name) as path:
            path.write_text(text, encoding="utf-8", newline="\n")


def ordered(runs: Iterable[Run]) -> list[Run]:
    """By arm, learning rate and seed."""
    return sorted(runs, key=lambda run: (run.arm, run.lr, run.seed, run.name))


def result(run: Run) -> dict[str, object]:
    """A row of `results.csv`."""
    final = {name: run.final.get(name, "") for name in VALIDATION}
    return {
        "run": run.name,
        "arm": run.arm,
        "seed": run.seed,
        "lr": f"{run.lr:g}",
        "finished": "yes" if run.finished else "no",
        "steps": run.last.step,
        "tokens": run.last.tokens,
        **{name.replace("/", "_"): value for name, value in final.items()},
        **{name: round(value) for name, value in run.axes.items()},
        "total_train_flops": round(run.last.flops),
    }


def cost(run: Run) -> dict[str, object]:
    """A row of `costs.csv`."""
    return {
        "run": run.name,
        "arm": run.arm,
        "seed": run.seed,
        "lr": f"{run.lr:g}",
        "tokens_per_second": run.tokens_per_second or "",
        "step_seconds": step_seconds(run),
        "training_seconds": run.last.seconds,
        "peak_memory": run.peak_memory or "",
        **run.speeds,
    }


def csv_text(rows: Iterable[Mapping[str, object]]) -> str:
    """Rows under the union of their keys, speeds last by context and batch; six decimals."""
    rows = list(rows)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    keys.sort(key=lambda key: _speed_order(key) if key.startswith(SPEEDS) else ("", 0, 0))
    written = io.StringIO()
    writer = csv.DictWriter(written, keys, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _figure(value) for key, value in row.items()})
    return written.getvalue()


def outcome(
    runs: Sequence[Run],
    arms: Mapping[str, Sequence[Run]],
    compared: Sequence[Comparison],
    about: About,
) -> list[tuple[str, str]]:
    """Verdicts and sentences: one a comparison, and what else must be known to read them."""
    found = [(one.verdict, one.sentence) for one in compared]
    if not arms.get(about.reference):
        found = [("", f"The reference {about.reference} has no finished run: nothing is compared.")]
    if any(not math.isnan(one.low) for one in compared):
        found.append(("", NOTE))
    found += [("", sentence) for sentence in cautions(runs, about)]
    figures = [
        runs[0].axes[about.match] for runs in arms.values() if runs and about.match != "none"
    ]
    if figures:
        spread = 100 * (max(figures) / min(figures) - 1)
        found.append(("", f"Matched on {about.match}: highest and lowest {spread:.1f} % apart."))
    return found


def cautions(runs: Sequence[Run], about: About) -> Iterator[str]:
    """What the numbers leave out."""
    for arm in dict.fromkeys(run.arm for run in runs):
        mine = [run for run in runs if run.arm == arm]
        if lost := [run for run in mine if not run.finished]:
            which = ", ".join(f"{run.name} ({run.status})" for run in lost)
            yield f"{arm} is compared without {which}."
        rates = sorted({run.lr for run in mine})
        best = best_rates(mine).get(arm)
        if len(rates) > 1 and best in (rates[0], rates[-1]):
            yield f"The best learning rate of {arm}, {best:g}, is at the end of its grid."
    if len({reads(run) for run in runs}) > 1:
        yield "Runs differ in data, rows or steps: the same seed does not give them the same data."
    if len({(run.arm, run.seed) for run in runs}) < len(runs):
        yield "The first seed has chosen the learning rates and is compared too, which flatters."
    if about.jobs > 1:
        yield f"Times and memory were measured with {about.jobs} cells at a time."


def reads(run: Run) -> str:
    """What decides which tokens come in which order, the seed apart."""
    data = run.cfg.data.model_dump(mode="json", exclude={"cache_dir", "verify"})
    return f"{data} {run.cfg.trainer.accumulate_grad_batches} {run.cfg.trainer.max_steps}"


def require_extra() -> None:
    """UserError without the packages of the extra `report`."""
    for name in ("jinja2", "scipy"):
        if importlib.util.find_spec(name) is None:
            raise UserError('ablate: pip install "mla_lm[report]"')


def markdown(about: About, sentences: Sequence[tuple[str, str]], shown: Sequence[Table]) -> str:
    """The report as text."""
    lines = [f"# {about.title}", ""]
    if about.question:
        lines += [about.question, ""]
    lines += [f"* {sentence}" for _, sentence in sentences]
    for table in shown:
        names = [name for name, _ in table.headers]
        lines += ["", f"## {table.title}", "", table.note, ""]
        lines += [_row(names), _row(["---"] * len(names))]
        lines += [_row([_linked(cell) for cell in row]) for row in table.rows]
    if about.failed:
        lines += ["", "## Failed cells", "", *(f"* {x}" for x in about.failed)]
    lines += ["", "## How to make it again", "", "```", about.command, "```"]
    if about.configurations:
        lines += ["", "SHA-256 of the configurations:", ""]
        lines += [f"* {arm}: `{digest}`" for arm, digest in about.configurations.items()]
    return "\n".join(lines) + "\n"


def page(
    about: About,
    runs: Sequence[Run],
    arms: Mapping[str, Sequence[Run]],
    compared: Sequence[Comparison],
    shown: Sequence[Table],
) -> str:
    """The report as one HTML file that refers to nothing but the folders of the runs."""
    import jinja2

    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    template = jinja2.Environment(
        loader=folder,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template(PAGE)
    return template.render(
        about=about,
        n_finished=sum(run.finished for run in runs),
        n_runs=about.n_planned or len(runs),
        sentences=outcome(runs, arms, compared, about),
        charts=charts(arms, compared),
        tables=shown,
        environments=environments(runs),
    )


def environments(runs: Sequence[Run]) -> list[str]:
    """The different surroundings that profiles have recorded, in words."""
    found = [", ".join(f"{k} {v}" for k, v in run.environment.items()) for run in runs]
    return list(dict.fromkeys(filter(None, found)))


def _figure(value: object) -> object:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.6f}"


def _speed_order(key: str) -> tuple[str, int, int]:
    kind, context, batch = key.split("/")
    return kind, int(context), int(batch)


def _row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"


def _linked(cell: Cell) -> str:
    return ", ".join(f"[{text}]({target})" for text, target in cell.links) or cell.text
