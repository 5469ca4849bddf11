"""`python -m mla_lm ablate ablation=NAME out=DIR [OVERRIDES]`: a resumable study and its report.

`ablation` is a file of configs/ablation or any YAML file of that form; every other KEY=VALUE is an
override for all cells. The same command resumes a study. `report=DIR` reports any folder of runs.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mla_lm.config.cli import parse_options
from mla_lm.config.secret import public_overrides
from mla_lm.errors import UserError

CHANGES = ("seeds", "lr_grid", "match", "confidence")  # of the study, from the command line
Text = Annotated[str, Field(min_length=1)] | None


def _numbers(text: Any) -> Any:
    return [number for number in text.split(",") if number] if isinstance(text, str) else text


class Options(BaseModel):
    """`ablation` and `out`, or `report`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    ablation: Text = Field(None, description="a name of configs/ablation, or a YAML file")
    out: Text = Field(None, description="folder of the study")
    report: Text = Field(None, description="a folder of runs to report, without a study")
    jobs: int = Field(1, gt=0, description="cells at a time; they share the cores")
    plan: bool = Field(False, description="only show what each arm would be")
    seeds: Annotated[tuple[int, ...], BeforeValidator(_numbers)] | None = Field(
        None, description="numbers, in place of the study's"
    )
    lr_grid: Annotated[tuple[float, ...], BeforeValidator(_numbers)] | None = Field(
        None, description="learning rates to try with the first seed of each arm"
    )
    match: str | None = Field(None, description="params | active_params | train_flops | kv_bytes")
    confidence: Annotated[
        float | None, BeforeValidator(lambda text: None if text == "null" else text)
    ] = Field(None, description="of the intervals, as 0.95")


def run(arguments: Sequence[str]) -> None:
    """Run or resume the study, or report a folder."""
    fields = Options.model_fields
    own = [word for word in arguments if word.partition("=")[0] in fields or "=" not in word]
    overrides = [word for word in arguments if word not in own]
    options = parse_options(Options, own)
    command = shlex.join(["python", "-m", "mla_lm", "ablate", *public_overrides(arguments)])
    if options.report:
        if overrides or len(options.model_fields_set) > 1:
            raise UserError(f"report={options.report}: takes no other options and no overrides")
        from mla_lm.ablation.conduct import report_folder

        report_folder(Path(options.report), command=command)
    elif options.ablation:
        _study(options, overrides, command)
    else:
        raise UserError("ablate: needs ablation=NAME out=DIR, or report=DIR")


def _study(options: Options, overrides: Sequence[str], command: str) -> None:
    """`ablation=NAME`: plan, run what is left, report."""
    from mla_lm.ablation.study import load_study, plan

    changes = {key: getattr(options, key) for key in CHANGES if key in options.model_fields_set}
    study = load_study(str(options.ablation), changes, overrides)
    planned = plan(study)

    from mla_lm.ablation.conduct import conduct, show

    show(study, planned)
    if options.plan:
        return
    if options.out is None:
        raise UserError("out: must be given, the folder of the study")
    conduct(study, planned, Path(options.out), jobs=options.jobs, command=command)
