"""Conducts a study: what each arm is, its cells, and the report of what they found."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mla_lm.ablation.report import About, write_report
from mla_lm.ablation.results import Run, read_run
from mla_lm.ablation.runner import Runner, claimed
from mla_lm.ablation.statistics import best_rates
from mla_lm.ablation.study import Cell, Plan, Study, cells, sweep_cells
from mla_lm.atomic import replacing
from mla_lm.errors import UserError

STUDY = "study.json"
MAY_CHANGE = ("question", "seeds", "confidence")  # of a study that has begun


def show(study: Study, planned: Plan) -> None:
    """Print what the budget made of each arm, on every axis."""
    table = Table(title=study.question)
    axes = [axis for axis, _ in planned.axes(study.reference)]
    for column in ("arm", *axes, "solved"):
        table.add_column(column, justify="right" if column in axes else "left")
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
        best = best_rates(found(runner, sweep)) if sweep else {}
        rest = cells(study, planned, best)
        first = [] if sweep else [cell.name for cell in rest if cell.seed == study.seeds[0]]
        runner.run(rest, profiled=first)
        about = About(
            title=out.name,
            question=study.question,
            command=command,
            digest=study.digest,
            reference=study.reference,
            match=study.match,
            confidence=study.confidence,
            failed=runner.failed(),
        )
        write_report(out, found(runner, [*sweep, *rest]), about)
    print(f"report {out / 'report.html'}")
    if failed := runner.failed():
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


def found(runner: Runner, wanted: Sequence[Cell]) -> list[Run]:
    """The runs of these cells, as far as they have begun."""
    folders = [(runner.folder(cell), cell) for cell in wanted]
    begun = [(folder, cell) for folder, cell in folders if (folder / "config.json").exists()]
    return [read_run(folder, arm=cell.arm, name=cell.name) for folder, cell in begun]
