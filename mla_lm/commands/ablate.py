"""`python -m mla_lm ablate ablation=NAME out=DIR [OVERRIDES]`: a resumable study and its report.

`ablation` is a file of configs/ablation or any YAML file of that form; every other KEY=VALUE is an
override for all cells. The same command resumes a study. `report=DIR` reports any folder of runs.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from mla_lm.config.cli import parse_options
from mla_lm.config.explain import key_of
from mla_lm.config.secret import public
from mla_lm.config.section import Name, PathName
from mla_lm.errors import UserError, output_may_end

if TYPE_CHECKING:
    from mla_lm.ablation.study import Plan

CHANGES = {"seeds", "lr_grid", "match", "confidence"}  # of the study, from the command line


class Options(BaseModel):
    """`ablation` and `out`, or `report`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ablation: PathName | None = Field(None, description="a name of configs/ablation, or a file")
    out: PathName | None = Field(None, description="folder of the study")
    report: PathName | None = Field(None, description="a folder of runs to report, without a study")
    jobs: int = Field(1, gt=0, description="cells at a time; they share the cores")
    plan: bool = Field(False, description="only show what each arm would be")
    seeds: Name | None = Field(None, description="numbers, in place of the study's")
    lr_grid: Name | None = Field(None, description="rates to try with the first seed of each arm")
    match: Name | None = Field(None, description="params | active_params | train_flops | kv_bytes")
    confidence: Name | None = Field(None, description="of the intervals, as 0.95; null for none")


@output_may_end()
def run(arguments: Sequence[str]) -> None:
    """Run or resume the study, or report a folder."""
    fields = Options.model_fields
    own = [word for word in arguments if word.partition("=")[0] in fields or "=" not in word]
    overrides = [word for word in arguments if word not in own]
    options = parse_options(Options, own)
    command = shlex.join(["python", "-m", "mla_lm", "ablate", *public(arguments)])
    if options.report:
        if overrides or len(options.model_fields_set) > 1:
            raise UserError(f"report={options.report}: takes no other options and no overrides")
        _runner().report_folder(Path(options.report), command=command)
        return
    if "arms" in map(key_of, overrides):
        file = "copy one of configs/ablation, change its arms, and give ablation=FILE.yaml"
        raise UserError(f"arms: are those of the study's file; {file}")
    if not options.ablation:
        raise UserError("ablate: needs ablation=NAME out=DIR, or report=DIR")
    from mla_lm.ablation.study import load_study, plan

    changes = options.model_dump(include=CHANGES, exclude_unset=True)
    planned = plan(load_study(options.ablation, changes, overrides))
    _show(planned)
    if options.plan:
        return
    if options.out is None:
        raise UserError("out: must be given, the folder of the study")
    _runner().conduct(planned, Path(options.out), jobs=options.jobs, command=command)


def _runner() -> ModuleType:
    try:
        from mla_lm.ablation import runner
    except ModuleNotFoundError as error:
        raise UserError(f'ablate: needs {error.name}: pip install "mla_lm[report]"') from None
    return runner


def _show(planned: "Plan") -> None:
    """Print what the budget made of each arm, on every axis."""
    from mla_lm.ablation.budget import Axes, axes

    print(planned.study.question)
    print(f"{'arm':20}", *(f"{axis:>14}" for axis in Axes._fields), " solved")
    for arm, cfg in planned.configs.items():
        solved = [f"{k.rpartition('.')[2]}={width}" for k, width in planned.solved[arm].items()]
        print(f"{arm:20}", *(f"{value:>14,}" for value in axes(cfg)), "", *solved)
