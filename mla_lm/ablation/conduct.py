"""Conducts a study: what each arm is, its cells, and the report of what they found."""

import json
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from mla_lm.ablation.budget import Axes, axes
from mla_lm.ablation.report import require_extra, write_report
from mla_lm.ablation.runner import CELLS, LOGS, Runner
from mla_lm.ablation.runs import Runs, read_runs, runs_below
from mla_lm.ablation.statistics import best_rates
from mla_lm.ablation.study import Plan, Study, cells, sweep_cells
from mla_lm.checkpoint.record import CONFIG_FILE
from mla_lm.config.compose import validate
from mla_lm.config.secret import public_overrides
from mla_lm.data import prepare
from mla_lm.errors import UserError
from mla_lm.files import claimed, read_object, replacing

STUDY = "study.json"
MAY_CHANGE = ("question", "seeds", "confidence")  # of a study that has begun


def show(study: Study, planned: Plan) -> None:
    """Print what the budget made of each arm, on every axis."""
    table = Table(title=study.question, box=SIMPLE, pad_edge=False)
    table.add_column("arm", overflow="fold")
    for axis in Axes._fields:
        table.add_column(axis, justify="right")
    table.add_column("solved", overflow="fold")
    for arm, cfg in planned.configs.items():
        solved = [f"{k.rpartition('.')[2]}={width}" for k, width in planned.solved[arm].items()]
        table.add_row(arm, *(f"{value:,}" for value in axes(cfg)), " ".join(solved))
    Console(markup=False).print(table)


def conduct(study: Study, planned: Plan, out: Path, *, jobs: int, command: str) -> None:
    """Run what is left of the cells, and write the report.

    Raises UserError where the folder belongs to another study, where the data cannot be had, and
    at the end where cells failed.
    """
    require_extra()
    with claimed(out, key="out"):
        _keep(study, planned, out, command)
        for data in {cfg.data for cfg in planned.configs.values()}:
            prepare(data)
        runner = Runner(out, planned.configs, jobs=jobs)
        sweep = sweep_cells(study)
        runner.run(sweep)
        swept = _begun(out, study) if sweep else None
        rest = cells(study, planned, best_rates(swept.table) if swept else {})
        runner.run(rest)
        failed = [f"{name} ({reason})" for name, reason in runner.failed.items()]
        if runs := _begun(out, study):
            write_report(out, runs, study, command=command, failed=failed, jobs=jobs)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(sweep) + len(rest)} cells failed: {'; '.join(failed)}; "
            f"see {out / LOGS}; the same command resumes"
        )


def report_folder(out: Path, *, command: str) -> None:
    """Report a study, or any folder of runs; of these the first is the reference.

    Raises UserError for a folder without any.
    """
    require_extra()
    if not out.is_dir():
        raise UserError(f"report={out}: no such folder")
    runs = None
    if (out / STUDY).exists():
        kept = read_object(out / STUDY)
        study, command = validate(Study, kept["study"]), kept["command"]
        runs = _begun(out, study)
    elif found := runs_below(out.resolve()):
        runs = read_runs(found)
        reference = runs.table.set_index("run").arm[next(iter(found))]
        study = Study.model_construct(question="", arms={}, reference=reference)
    if not runs:
        raise UserError(f"report={out}: holds no run")
    write_report(out, runs, study, command=command)


def _keep(study: Study, planned: Plan, out: Path, command: str) -> None:
    """Write down what is studied; UserError where the folder belongs to another study."""
    path = out / STUDY
    content = study.model_dump(mode="json") | {"base": public_overrides(study.base)}
    own_yaml = {"logger", "callbacks"}  # which may hold secrets
    arms = {a: cfg.model_dump(mode="json", exclude=own_yaml) for a, cfg in planned.configs.items()}
    if path.exists():
        begun = read_object(path)
        for key in content:
            if key not in MAY_CHANGE and content[key] != begun["study"].get(key):
                raise UserError(f"out={out}: belongs to another study, whose {key} differs")
        for arm in arms:
            if arms[arm] != begun["configurations"][arm]:
                raise UserError(f"out={out}: begun when configs/ made another {arm} of this study")
    elif any(not inside.name.startswith(".") for inside in out.iterdir()):
        raise UserError(f"out={out}: not empty, and no study; name a new folder")
    kept = {"command": command, "study": content, "configurations": arms}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(kept, indent=2) + "\n")


def _begun(out: Path, study: Study) -> Runs | None:
    """The cells of a study that have begun; None without any."""
    folders = {path.parent.name: path.parent for path in (out / CELLS).glob(f"*/{CONFIG_FILE}")}
    arms = {
        name: max((arm for arm in study.arms if name.startswith(f"{arm}-")), key=len)
        for name in folders
    }
    return read_runs(folders, arms) if folders else None
