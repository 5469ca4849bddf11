"""Runs as two pandas frames, read from their folders: one row per run, and their curves.

What `train.py` logs is in `metrics/version_*/metrics.csv`, a version for each start of the run.
Speeds are in `metrics.json` where `eval.py parts=[profile]` wrote them; in a study they and the
peak memory are in `cost.json`. Knows nothing of statistics and reports.
"""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mla_lm.ablation.budget import axes
from mla_lm.ablation.cell import COST
from mla_lm.checkpoint.record import CONFIG_FILE
from mla_lm.config import RunConfig
from mla_lm.config.section import leaves
from mla_lm.errors import UserError, one_line
from mla_lm.files import read_object

if TYPE_CHECKING:
    from pandas import DataFrame

FREE = (  # keys that runs of one arm may differ in
    *("run_dir", "run_id", "seed", "resume", "checkpoint"),
    *("data.cache_dir", "data.verify"),
    *("trainer.log_every_n_steps", "trainer.val_every_n_steps"),
)
KINDS = ["model.attention.kind", "model.ffn.kind", "model.rope.kind", "optim.kind", "data.kind"]
METRICS = {"val/exact_match": "higher", "val/bpb": "lower"}  # compared, and what is better
LOGGED = ("val/loss", *METRICS, "moe/max_violation")  # columns that are always there
SPEED, SPEEDS = "train/tokens_per_second", ("prefill/", "decode/")


class Runs(NamedTuple):
    """`table`: a row per run; `curves`: a row per run and logged step.

    `settings` has for each run the value of every key that makes an arm, as text. Of a run that
    has not reached its last step, the final metrics in `table` are NaN.
    """

    table: "DataFrame"
    curves: "DataFrame"
    settings: "DataFrame"


def read_runs(folders: Mapping[str, Path], arms: Mapping[str, str] | None = None) -> Runs:
    """The runs in folders by name, sorted by arm, learning rate and seed; `arms` by run.

    Without `arms`, an arm is named by the keys in which configurations differ. Raises UserError
    for a folder that holds no run, or a damaged one.
    """
    import pandas as pd

    folders = dict(sorted(folders.items()))
    configs = {name: _config(folder) for name, folder in folders.items()}
    settings = pd.DataFrame.from_dict({n: _settings(c) for n, c in configs.items()}, "index")
    settings = settings.fillna("")
    arms = arms or arm_names(settings)
    rows, curves = [], []
    for name, folder in folders.items():
        curve = _curve(configs[name], _logged(folder))
        curve.insert(0, "run", name)
        curves.append(curve)
        rows.append({"run": name, "arm": arms[name], **_row(configs[name], curve, folder)})
    table = pd.DataFrame(rows).sort_values(["arm", "lr", "seed", "run"], ignore_index=True)
    return Runs(table, pd.concat(curves, ignore_index=True), settings)


def runs_below(folder: Path) -> dict[str, Path]:
    """Every run in a folder by its path there."""
    found = sorted(path.parent for path in folder.rglob(CONFIG_FILE) if "run_id" in _json(path))
    return {path.relative_to(folder).as_posix().lstrip(".") or path.name: path for path in found}


def arm_names(settings: "DataFrame") -> dict[str, str]:
    """A name for the arm of each run: the values that tell runs apart, kinds first."""
    named: list[str] = []
    for key in dict.fromkeys([*KINDS, *settings]):
        told_apart = len(settings[named].drop_duplicates()) if named else 1
        if key in settings and len(settings[[*named, key]].drop_duplicates()) > told_apart:
            named.append(key)
    parts = settings[named or KINDS[:1]]
    return {
        run: " ".join(v if k in KINDS else f"{k}={v}" for k, v in values.items() if v)
        for run, values in parts.to_dict("index").items()
    }


def graded_by(table: "DataFrame") -> list[str]:
    """Those of METRICS that any of the runs has."""
    return [metric for metric in METRICS if table[metric].notna().any()]


def _settings(cfg: RunConfig) -> dict[str, str]:
    values = leaves(cfg.model_dump(mode="json", exclude={"logger", "callbacks"}))
    kept = {key: value for key, value in values if not key.startswith(FREE)}
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in kept.items()}


def _config(folder: Path) -> RunConfig:
    path = folder / CONFIG_FILE
    stored = _json(path)
    if "run_id" not in stored:
        raise UserError(f"{folder}: no run, for it lacks a {CONFIG_FILE} with a run_id")
    try:
        return RunConfig.model_validate(stored)
    except ValueError as error:
        reason = one_line(error)
        raise UserError(f"{path}: does not fit this version of mla_lm ({reason})") from None


def _row(cfg: RunConfig, curve: "DataFrame", folder: Path) -> dict[str, Any]:
    """What a run was, came to and cost."""
    validated = curve[curve.validated]
    step, tokens, seconds = (
        (0, 0, math.nan) if validated.empty else validated.iloc[-1][["step", "tokens", "seconds"]]
    )
    ended = step == cfg.trainer.max_steps
    final = {name: validated[name].iloc[-1] if ended else math.nan for name in LOGGED[:-1]}
    status = "finished" if math.isfinite(final["val/loss"]) else "diverged"
    measured = _json(folder / "metrics.json") | _json(folder / COST)
    environment = _json(folder / "run.json").get("environment", {})
    speed = curve[SPEED].median()
    return {
        "seed": cfg.seed,
        "lr": cfg.optim.lr,
        "status": status if ended else f"step {step:.0f} of {cfg.trainer.max_steps}",
        "steps": int(step),
        "tokens": int(tokens),
        **final,
        **axes(cfg)._asdict(),
        "total_train_flops": int(tokens) * axes(cfg).train_flops,
        "tokens_per_second": speed,
        "step_seconds": _tokens_per_step(cfg) / speed,
        "training_seconds": seconds,
        "peak_memory": measured.get("peak_memory", math.nan),
        **{key: value for key, value in measured.items() if key.startswith(SPEEDS)},
        "folder": folder,
        "environment": ", ".join(f"{key} {value}" for key, value in environment.items()),
    }


def _curve(cfg: RunConfig, logged: Mapping[int, Mapping[str, float]]) -> "DataFrame":
    """What was logged, by step, and what was spent until then: tokens, FLOPs, seconds of training.

    Seconds leave validations out; they are NaN where no speed was logged.
    """
    import pandas as pd

    curve = pd.DataFrame.from_dict(logged, orient="index", dtype=float)
    curve = curve.reindex(columns=dict.fromkeys([*LOGGED, SPEED, *curve.columns]))
    step = curve.index.to_numpy(dtype=int)
    curve.insert(0, "step", step)
    curve.insert(1, "tokens", step * _tokens_per_step(cfg))
    curve.insert(2, "flops", curve.tokens * axes(cfg).train_flops)
    speed = curve[SPEED].bfill().ffill()  # a speed is that of the steps before it
    taken = np.diff(curve.tokens, prepend=0) / speed
    curve.insert(3, "seconds", taken.cumsum())
    validated = np.array(["val/loss" in row for row in logged.values()], dtype=bool)
    curve.insert(4, "validated", validated)
    return curve.reset_index(drop=True)


def _tokens_per_step(cfg: RunConfig) -> int:
    return cfg.data.batch_size * cfg.data.seq_len * cfg.trainer.accumulate_grad_batches


def _logged(folder: Path) -> dict[int, dict[str, float]]:
    """What was logged after each optimizer step, by step; a later start of the run wins."""
    found: dict[int, dict[str, float]] = {}
    files = folder.glob("metrics/version_*/metrics.csv")
    for path in sorted(files, key=lambda path: (len(path.parent.name), path.parent.name)):
        lines = path.read_text().splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            lines.pop()  # its process was killed while it wrote
        try:
            for row in csv.DictReader(lines):
                values = {key: float(value) for key, value in row.items() if value}
                found.setdefault(int(values.pop("step")) + 1, {}).update(values)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not the metrics of a run ({one_line(error)})") from None
    return dict(sorted(found.items()))


def _json(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}
