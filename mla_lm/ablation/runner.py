"""Conducts a study: its cells, each a process of its own, and the report of what they found.

What is on disk decides what is left: a finished cell is skipped, one that was cut short resumes
from its newest checkpoint, one that fails does not stop the others.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from mla_lm.ablation.cell import CONFIG, COST
from mla_lm.ablation.report import write_report
from mla_lm.ablation.runs import Runs, read_if_there, read_runs, runs_below
from mla_lm.ablation.statistics import best_rates
from mla_lm.ablation.study import Cell, Plan, Study, cells, sweep_cells
from mla_lm.checkpoint.record import CONFIG_FILE
from mla_lm.config.compose import read_as
from mla_lm.config.secret import hidden, public
from mla_lm.data import prepare
from mla_lm.errors import UserError
from mla_lm.files import claimed, unhidden, write_object

CELLS, LOGS = "cells", "logs"
STUDY = "study.json"
MAY_CHANGE = ("question", "seeds", "confidence")  # of a study that has begun
NOT_KEPT = {"run_dir", "run_id", "logger", "callbacks"}  # of cells; may hold secrets
POLL = 0.1  # seconds between looks at the processes


class Kept(BaseModel):
    """`study.json`: what is studied, and by which command."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: str
    study: Study
    configurations: dict[str, dict[str, Any]]


def conduct(planned: Plan, out: Path, *, jobs: int, command: str) -> None:
    """Run what is left of the cells, and write the report.

    Raises UserError where the folder belongs to another study, where the data cannot be had, and
    at the end where cells failed.
    """
    study = planned.study
    with claimed(out, key="out"):
        _keep(planned, out, command)
        for data in {cfg.data for cfg in planned.configs.values()}:
            prepare(data)
        sweep = sweep_cells(study)
        failed = run_cells(planned, sweep, out, jobs=jobs)
        swept = _begun(out, study)
        rest = cells(study, best_rates(swept.table) if swept else {})
        failed += run_cells(planned, rest, out, jobs=jobs)
        if runs := _begun(out, study):
            write_report(out, runs, study, command=command, failed=failed, jobs=jobs)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(sweep) + len(rest)} cells failed: {'; '.join(failed)}; "
            f"see {out / LOGS}; the same command resumes"
        )


def report_folder(out: Path, *, command: str) -> None:
    """Report a study, or any folder of runs; of these the first is of the reference.

    Raises UserError for a folder without any.
    """
    if not out.is_dir():
        raise UserError(f"report={out}: no such folder")
    if (out / STUDY).exists():
        kept = read_as(Kept, out / STUDY)
        study, command = kept.study, kept.command
        runs = _begun(out, study)
    elif runs := read_runs(found := runs_below(out.resolve())):
        reference = runs.table.set_index("run").arm[next(iter(found))]
        study = Study.model_construct(question="", arms={}, reference=reference)
    if not runs:
        raise UserError(f"report={out}: holds no run")
    write_report(out, runs, study, command=command)


def _keep(planned: Plan, out: Path, command: str) -> None:
    """Write down what is studied; UserError where the folder belongs to another study."""
    path = out / STUDY
    study = planned.study.model_dump(mode="json")
    study |= {"base": public(study["base"]), "question": hidden(study["question"])}
    study["arms"] = {name: public(arm) for name, arm in study["arms"].items()}
    arms = planned.configs.items()
    configs = {arm: public(cfg.model_dump(mode="json", exclude=NOT_KEPT)) for arm, cfg in arms}
    if path.exists() and any((out / CELLS).glob("*/checkpoints/*")):
        begun = read_as(Kept, path).model_dump(mode="json")
        for before, now in ((begun["study"], study), (begun["configurations"], configs)):
            for key in now:
                if key not in MAY_CHANGE and now[key] != before.get(key):
                    raise UserError(f"out={out}: belongs to another study, whose {key} differs")
    elif unhidden(out) and not path.exists():
        raise UserError(f"out={out}: not empty, and no study; name a new folder")
    write_object(path, {"command": command, "study": study, "configurations": configs})


def _begun(out: Path, study: Study) -> Runs | None:
    """The cells of a study that have begun; None without any."""
    folders = runs_below(out / CELLS)
    arms = {}
    for name, folder in folders.items():
        fitting = [arm for arm in study.arms if name.startswith(f"{arm}-")]
        if not fitting:
            raise UserError(f"{folder}: of none of the arms {', '.join(study.arms)}")
        arms[name] = max(fitting, key=len)
    return read_runs(folders, arms)


def run_cells(planned: Plan, cells: Sequence[Cell], out: Path, *, jobs: int) -> list[str]:
    """Run what is left of these, `jobs` at a time; which have failed, and why.

    An interruption lets the running ones save and end.
    """
    waiting, failed = [], []
    for cell in cells:
        if (out / CELLS / cell.name / COST).exists():
            print(f"{cell.name}: skipped, finished before")
        else:
            waiting.append(cell)
    running: dict[Cell, subprocess.Popen[bytes]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                running[cell] = _started(planned, cell, out, jobs)
            time.sleep(POLL)
            for cell in [cell for cell, process in running.items() if process.poll() is not None]:
                failed += _ended(running.pop(cell), out / LOGS / f"{cell.name}.log")
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.communicate()
    return failed


def _started(planned: Plan, cell: Cell, out: Path, jobs: int) -> "subprocess.Popen[bytes]":
    folder, log = out / CELLS / cell.name, out / LOGS / f"{cell.name}.log"
    run_id = read_if_there(folder / CONFIG_FILE).get("run_id")
    cfg = planned.cell_config(cell, folder, run_id)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{cell.name}: running, see {log}", flush=True)
    share = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "mla_lm.ablation.cell", str(folder)],
            stdin=subprocess.PIPE,  # its end tells the cell that the runner is gone
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**share, **os.environ, CONFIG: cfg.model_dump_json()},
            start_new_session=True,  # Ctrl-C is for the runner, which lets the cells save
        )


def _ended(process: "subprocess.Popen[bytes]", log: Path) -> list[str]:
    """Say how a cell ended; its name and the reason where it failed."""
    process.communicate()
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    last = hidden(lines[-1]) if lines else ""
    if process.returncode == 0:
        validated = [line for line in lines if "val/bpb" in line]
        print(f"{log.stem}: finished  {validated[-1] if validated else last}", flush=True)
        return []
    reason = f"signal {-process.returncode} after: {last}" if process.returncode < 0 else last
    print(f"{log.stem}: failed  {reason}", flush=True)
    return [f"{log.stem} ({reason})"]
