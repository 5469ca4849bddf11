"""Conducts a study: what each arm is, its cells, and the report of what they found."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mla_lm.ablation.report import About, require_extra, write_report
from mla_lm.ablation.results import Run, read_run, runs_below
from mla_lm.ablation.runner import CELLS, Runner
from mla_lm.ablation.statistics import best_rates
from mla_lm.ablation.study import Cell, Plan, Study, cells, plan, sweep_cells
from mla_lm.checkpoint.record import CONFIG_FILE
from mla_lm.config.compose import validate
from mla_lm.data import prepare
from mla_lm.errors import UserError
from mla_lm.files import claimed, replacing

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
    Console(markup=False).print(table)


def conduct(study: Study, planned: Plan, out: Path, *, jobs: int, command: str) -> None:
    """Run what is left of the cells, and write the report.

    Raises UserError where the folder belongs to another study, where the data cannot be had, and
    at the end where cells failed.
    """
    require_extra()
    with claimed(out, key="out"):
        keep(study, planned, out, command)
        for data in {cfg.data for cfg in planned.configs.values()}:
            prepare(data)
        runner = Runner(out, jobs=jobs)
        sweep = sweep_cells(study, planned)
        runner.run(sweep, profiled=[cell.name for cell in sweep])
        rest = cells(study, planned, rates(study, out, sweep))
        first = [] if sweep else [cell.name for cell in rest if cell.seed == study.seeds[0]]
        runner.run(rest, profiled=first)
        failed = runner.failed()
        report(study, planned, out, command, failed=failed, jobs=jobs)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(sweep) + len(rest)} cells failed: {'; '.join(failed)}; "
            f"{out / 'logs'} has what they said; the same command goes on"
        )


def keep(study: Study, planned: Plan, out: Path, command: str) -> None:
    """Write down what is studied; UserError where the folder belongs to another study."""
    path, content = out / STUDY, study.model_dump(mode="json")
    digests = planned.digests()
    if path.exists():
        begun = json.loads(path.read_text())
        for key in content:
            if key not in MAY_CHANGE and content[key] != begun["study"].get(key):
                raise UserError(f"out={out}: belongs to another study, whose {key} differs")
        for arm, digest in digests.items():
            if digest != begun["configurations"].get(arm):
                raise UserError(f"out={out}: begun when configs/ made another {arm} of this study")
    elif any(not inside.name.startswith(".") for inside in out.iterdir()):
        raise UserError(f"out={out}: not empty, and no study; name a new folder")
    kept = {"command": command, "study": content, "configurations": digests}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(kept, indent=2) + "\n")


def rates(study: Study, out: Path, sweep: Sequence[Cell]) -> dict[str, float]:
    """The best learning rate of each arm, of those in the sweep that have finished."""
    return best_rates(found(out, sweep)) if study.lr_grid else {}


def found(out: Path, wanted: Sequence[Cell]) -> list[Run]:
    """The runs of these cells, as far as they have begun."""
    folders = [(out / CELLS / cell.name, cell) for cell in wanted]
    begun = [(folder, cell) for folder, cell in folders if (folder / CONFIG_FILE).exists()]
    return [read_run(folder, arm=cell.arm, name=cell.name) for folder, cell in begun]


def report(study: Study, planned: Plan, out: Path, command: str, **more: Any) -> None:
    """Write the report of a study as far as it has come; `more` are fields of `About`."""
    sweep = sweep_cells(study, planned)
    wanted = [*sweep, *cells(study, planned, rates(study, out, sweep))]
    runs = found(out, wanted)
    about = About(
        title=out.resolve().name,
        question=study.question,
        command=command,
        configurations=planned.digests(),
        reference=study.reference,
        match=study.match,
        confidence=study.confidence,
        n_planned=len(wanted),
        **more,
    )
    write_report(out, runs, about)
    print(f"report {out / 'report.html'}")


def report_folder(out: Path, *, command: str) -> None:
    """Report a study, or any folder of runs; of these the first is the reference.

    Raises UserError for a folder without any.
    """
    require_extra()
    if not out.is_dir():
        raise UserError(f"report={out}: no such folder")
    if (out / STUDY).exists():
        kept = json.loads((out / STUDY).read_text())
        study = validate(Study, kept["study"])
        report(study, plan(study), out, kept["command"])
        return
    runs = runs_below(out.resolve())
    if not runs:
        raise UserError(f"report={out}: holds no run")
    write_report(out, runs, About(out.resolve().name, "", command, {}, runs[0].arm, "none"))
    print(f"report {out / 'report.html'}")
