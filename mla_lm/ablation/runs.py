"""Runs as pandas frames, read from their folders: one row per run, and their curves.

What `train.py` logs is in `metrics/version_*/metrics.csv`, a version for each start of a run. What
an earlier start logged beyond the step from which a later one went on is of weights that are gone.
Speeds are in `metrics.json` where `eval.py parts=[profile]` wrote them; in a study they and the
peak memory are in `cost.json`. Knows nothing of statistics and reports.
"""

import csv
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
from pandas import DataFrame
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mla_lm.ablation.budget import axes
from mla_lm.ablation.cell import COST
from mla_lm.checkpoint.record import CONFIG_FILE
from mla_lm.config import RunConfig
from mla_lm.config.compose import read_as, validate
from mla_lm.config.section import leaves
from mla_lm.config.text import shown
from mla_lm.errors import UserError, inline, one_line
from mla_lm.files import read_object, read_text

FREE = (  # keys that runs of one arm may differ in
    *("run_dir", "run_id", "seed", "resume", "checkpoint"),
    *("data.cache_dir", "data.verify"),
    *("trainer.log_every_n_steps", "trainer.val_every_n_steps"),
)
METRICS = {"val/exact_match": "higher", "val/bpb": "lower"}  # compared, and what is better
LOGGED = ("val/loss", *METRICS, "moe/max_violation")  # columns that are always there
SPEED, SPEEDS = "train/tokens_per_second", ("prefill/", "decode/")
READ = (*LOGGED, SPEED)
MEASURED = re.compile(r"peak_memory|(prefill|decode)/[0-9]{1,9}/[0-9]{1,9}")
LARGEST = 1e12  # from here on what was logged counts as diverged


class Costs(BaseModel):
    """What a clock has measured: `cost.json`, and among other metrics in `metrics.json`."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, Annotated[float, Field(gt=0, lt=1e15)]]

    @model_validator(mode="before")
    @classmethod
    def _of_clocks(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in given.items() if MEASURED.fullmatch(name)}


class Ran(BaseModel):
    """`run.json`, as far as it is reported."""

    model_config = ConfigDict(frozen=True, strict=True)

    environment: dict[str, str | int] = {}


class Runs(NamedTuple):
    """`table`: a row per run; `curves`: a row per run and logged step.

    `settings` has for each run the value of every key in which arms may differ, as text. In `table`
    the final metrics of a run that has not reached its last step are NaN.
    """

    table: DataFrame
    curves: DataFrame
    settings: DataFrame


def read_runs(folders: Mapping[str, Path], arms: Mapping[str, str] | None = None) -> Runs | None:
    """The runs in folders by name, sorted by arm, learning rate and seed; None without any.

    `arms` by run; without them an arm is named by the keys in which configurations differ. Raises
    UserError for a damaged run.
    """
    if not folders:
        return None
    folders = {inline(name): folder for name, folder in folders.items()}
    configs = {name: _config(folders[name]) for name in sorted(folders)}
    texts = {name: _settings(cfg) for name, cfg in configs.items()}
    settings = DataFrame.from_dict(texts, "index").fillna("")
    arms = {inline(run): inline(arm) for run, arm in (arms or arm_names(settings)).items()}
    curves = {name: _curve(cfg, folders[name]) for name, cfg in configs.items()}
    rows = [
        {"run": name, "arm": arms[name], **_row(cfg, curves[name], folders[name])}
        for name, cfg in configs.items()
    ]
    table = DataFrame(rows).sort_values(["arm", "lr", "seed", "run"], ignore_index=True)
    return Runs(table, pd.concat(curves, names=["run"]).reset_index("run"), settings)


def runs_below(folder: Path) -> dict[str, Path]:
    """Every run in a folder by its path there."""
    found = sorted(
        path.parent for path in folder.rglob(CONFIG_FILE) if "run_id" in read_if_there(path)
    )
    return {path.relative_to(folder).as_posix().lstrip(".") or path.name: path for path in found}


def arm_names(settings: DataFrame) -> dict[str, str]:
    """A name for the arm of each run: its attention kind, and the values that tell runs apart."""
    named = ["model.attention.kind"]
    for key in sorted(settings, key=lambda key: not key.endswith(".kind")):
        if len(settings[[*named, key]].drop_duplicates()) > len(settings[named].drop_duplicates()):
            named.append(key)
    return {
        run: " ".join(v if k.endswith(".kind") else f"{k}={v}" for k, v in values.items() if v)
        for run, values in settings[named].to_dict("index").items()
    }


def graded_by(table: DataFrame) -> list[str]:
    """Those of METRICS that any of the runs has."""
    return [metric for metric in METRICS if table[metric].notna().any()]


def _settings(cfg: RunConfig) -> dict[str, str]:
    values = leaves(cfg.model_dump(mode="json", exclude={"logger", "callbacks"}))
    kept = {key: value for key, value in values if not key.startswith(FREE)}
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in kept.items()}
    return {key: inline(shown(text)) for key, text in texts.items()}


def _config(folder: Path) -> RunConfig:
    stored = read_object(folder / CONFIG_FILE)
    try:
        return validate(RunConfig, stored)
    except UserError as error:
        raise UserError(f"{folder}: does not fit this version of mla_lm ({error})") from None


def _row(cfg: RunConfig, curve: DataFrame, folder: Path) -> dict[str, Any]:
    """The row of a run in `Runs.table`: its settings, results and costs."""
    spent = {"step": 0, "tokens": 0, "seconds": math.nan} | dict.fromkeys(LOGGED, math.nan)
    if curve.validated.any():
        spent = curve[curve.validated].iloc[-1]
    ended = spent["step"] == cfg.trainer.max_steps
    final = {name: spent[name] if ended else math.nan for name in LOGGED[:-1]}
    status = "finished" if math.isfinite(final["val/loss"]) else "diverged"
    files = [folder / name for name in ("metrics.json", COST)]
    measured = {k: v for path in files if path.exists() for k, v in read_as(Costs, path)}
    ran = read_as(Ran, path) if (path := folder / "run.json").exists() else Ran()
    tokens, speed = int(spent["tokens"]), curve[SPEED].median()
    return {
        "seed": cfg.seed,
        "lr": cfg.optim.lr,
        "status": status if ended else f"step {spent['step']} of {cfg.trainer.max_steps}",
        "steps": spent["step"],
        "tokens": tokens,
        **final,
        **axes(cfg)._asdict(),
        "total_train_flops": tokens * axes(cfg).train_flops,
        "tokens_per_second": speed,
        "step_seconds": _tokens_per_step(cfg) / speed,
        "training_seconds": spent["seconds"],
        "peak_memory": math.nan,
        **measured,
        "folder": folder.resolve(),
        "environment": ", ".join(f"{key} {value}" for key, value in ran.environment.items()),
    }


def _curve(cfg: RunConfig, folder: Path) -> DataFrame:
    """What was logged, by step, and what was spent until then: tokens, FLOPs, seconds of training.

    Seconds leave validations out; they are NaN where no speed was logged.
    """
    logged = {step: row for step, row in _logged(folder).items() if step <= cfg.trainer.max_steps}
    curve = DataFrame.from_dict(logged, orient="index", dtype=float).sort_index()
    curve = curve.reindex(columns=READ)
    curve["step"] = curve.index.astype(int)
    curve["tokens"] = curve.step * float(_tokens_per_step(cfg))
    curve["flops"] = curve.tokens * axes(cfg).train_flops
    curve[SPEED] = curve[SPEED].where(curve[SPEED] > 0)
    speed = curve[SPEED].bfill().ffill()  # a speed is that of the steps before it
    curve["seconds"] = (np.diff(curve.tokens, prepend=0) / speed).cumsum()
    validated = [step for step, row in logged.items() if "val/loss" in row]  # NaN, it may be
    curve["validated"] = curve.step.isin(validated)
    return curve


def _tokens_per_step(cfg: RunConfig) -> int:
    return cfg.data.batch_size * cfg.data.seq_len * cfg.trainer.accumulate_grad_batches


def _logged(folder: Path) -> dict[int, dict[str, float]]:
    """What training logged after each optimizer step, by step; a later start of the run wins."""
    found: dict[int, dict[str, float]] = {}
    files = {
        int(number): path
        for path in folder.glob("metrics/version_*/metrics.csv")
        if (number := path.parent.name.partition("_")[2]).isdecimal()
    }
    for _, path in sorted(files.items()):
        try:
            whole, _, _ = read_text(path).rpartition("\n")  # without a line that was cut short
            rows = [
                {key: float(value) for key, value in row.items() if value}
                for row in csv.DictReader(whole.splitlines())
            ]
            by_step = [(int(row.pop("step")) + 1, _bounded(row)) for row in rows]
            if not all(0 < step <= LARGEST for step, _ in by_step):
                raise ValueError("a step that is none")
        except (ValueError, KeyError, TypeError, OverflowError, OSError, csv.Error) as error:
            raise UserError(f"{path}: not the metrics of a run ({one_line(error)})") from None
        own = [(step, row) for step, row in by_step if "epoch" in row]  # those of eval.py have none
        began = min((step for step, _ in own), default=math.inf)
        found = {step: row for step, row in found.items() if step <= began}
        for step, row in own:
            found.setdefault(step, {}).update(row)
    return found


def _bounded(values: Mapping[str, float]) -> dict[str, float]:
    return {key: v if abs(v) < LARGEST else math.nan for key, v in values.items()}


def read_if_there(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one without the file."""
    return read_object(path) if path.exists() else {}
