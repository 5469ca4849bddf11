"""Conducts a study: what each arm is, its cells, and the report of what they found."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mla_lm.ablation.report import About, write_report
from mla_lm.ablation.results import Run, read_run, runs_below
from mla_lm.ablation.runner import CELLS, Runner, claimed
from mla_lm.ablation.statistics import best_rates
from mla_lm.ablation.study import Cell, Plan, Study, cells, sweep_cells
from mla_lm.atomic import replacing
from mla_lm.checkpoint import CONFIG_FILE
from mla_lm.cli import validate
from mla_lm.errors import UserError

STUDY = "study.json"
MAY_CHANGE = ("question", "seeds", "confidence")  # of a study that has begun


def show(study: Study, planned: Plan) -> None:
    """Print what the budget made of each arm, on every axis."""
    table = Table(title=study.question)
    axes = [axis for axis, _ in planned.axes(study.reference)]
    for column in ("arm", *axes, "solved"):
        table.add_column(column, justify="right" if column in axes else "left", overflow="fold")
    for arm, solved in planned.solved.items():
        figures = [f"{value:,.0f}" for _, value in planned.axes(arm)]
        table.add_row(arm, *figures, " ".join(solved))
    Console().print(table)


def conduct(study: Study, planned: Plan, out: Path, *, jobs: int, command: str) -> None:
    """Run what is left of the cells, and write the report.

    Raises UserError where the folder belongs to another study, and at the end where cells failed.
    """
    with claimed(out):
        keep(study, out)
        runner = Runner(out, jobs=jobs)
        sweep = sweep_cells(study, planned)
        runner.run(sweep, profiled=[cell.name for cell in sweep[: len(planned.words)]])
        best = best_rates(found(out, sweep)) if sweep else {}
        rest = cells(study, planned, best)
        first = [] if sweep else [cell.name for cell in rest if cell.seed == study.seeds[0]]
        runner.run(rest, profiled=first)
        failed = runner.failed()
        report(study, out, found(out, [*sweep, *rest]), command=command, failed=failed)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(sweep) + len(rest)} cells failed: {'; '.join(failed)}; "
            f"{out / 'logs'} has what they said; the same command goes on"
        )


def keep(study: Study, out: Path) -> None:
    """Write down what is studied; UserError where the folder belongs to another study."""
    path, mine = out / STUDY, study.model_dump(mode="json")
    if path.exists():
        theirs = json.loads(path.read_text())
        for key in mine:
            if key not in MAY_CHANGE and mine[key] != theirs.get(key):
                raise UserError(f"out={out}: belongs to another study, whose {key} differs")
    elif any(not inside.name.startswith(".") for inside in out.iterdir()):
        raise UserError(f"out={out}: not empty, and no study; name a new folder")
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(mine, indent=2) + "\n")


def found(out: Path, wanted: Sequence[Cell]) -> list[Run]:
    """The runs of these cells, as far as they have begun."""
    folders = [(out / CELLS / cell.name, cell) for cell in wanted]
    begun = [(folder, cell) for folder, cell in folders if (folder / CONFIG_FILE).exists()]
    return [read_run(folder, arm=cell.arm, name=cell.name) for folder, cell in begun]


def report(
    study: Study, out: Path, runs: Sequence[Run], *, command: str, failed: Sequence[str] = ()
) -> None:
    """Write the report of a study, and say where it is."""
    about = About(
        title=out.resolve().name,
        question=study.question,
        command=command,
        digest=study.digest,
        reference=study.reference,
        match=study.match,
        confidence=study.confidence,
        failed=failed,
    )
    write_report(out, runs, about)
    print(f"report {out / 'report.html'}")


def report_folder(out: Path, *, command: str) -> None:
    """Report a study as far as it has come, or any folder of runs; the first is the reference.

    Raises UserError for a folder without any.
    """
    if not out.is_dir():
        raise UserError(f"report={out}: no such folder")
    if (out / STUDY).exists():
        study = validate(Study, json.loads((out / STUDY).read_text()))
        folders = sorted(path.parent for path in (out / CELLS).glob(f"*/{CONFIG_FILE}"))
        runs = [read_run(folder, arm=arm_of(folder, study), name=folder.name) for folder in folders]
        runs.sort(key=lambda run: (run.seed, [*study.arms].index(run.arm)))
        report(study, out, runs, command=command)
        return
    runs = runs_below(out)
    if not runs:
        raise UserError(f"report={out}: holds no run")
    about = About(out.resolve().name, "", command, "", runs[0].arm, "none")
    write_report(out, runs, about)
    print(f"report {out / 'report.html'}")


def arm_of(folder: Path, study: Study) -> str:
    """The arm a cell's name begins with."""
    arms = [arm for arm in study.arms if folder.name.startswith((f"{arm}-s", f"{arm}-lr"))]
    return max(arms, key=len)
