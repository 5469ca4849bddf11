"""Runs as a report needs them, read from their folders: curves, final figures, costs.

What `train.py` logs is in `metrics/version_*/metrics.csv`, a version for each start of the run.
Speeds are in `metrics.json` where `eval.py parts=[profile]` wrote them, the peak memory in
`cost.json` where a study did. Knows nothing of statistics and pages.
"""

import csv
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mla_lm.ablation import budget
from mla_lm.checkpoint.record import CONFIG_FILE, completed
from mla_lm.config import RunConfig
from mla_lm.config.section import leaves
from mla_lm.cost import train_flops_per_token
from mla_lm.errors import UserError, one_line

FREE = (  # keys that runs of one arm may differ in
    "run_dir",
    "run_id",
    "seed",
    "resume",
    "logger",
    "callbacks",
    "checkpoint",
    "data.cache_dir",
    "data.verify",
    "trainer.log_every_n_steps",
    "trainer.val_every_n_steps",
)
KINDS = ("model.attention.kind", "model.ffn.kind", "model.rope.kind", "optim.kind", "data.kind")
SPEEDS = ("prefill/", "decode/")
SPEED, VIOLATION = "train/tokens_per_second", "moe/max_violation"


class Point(NamedTuple):
    """A validation: what was spent until then, and `val/*` by name."""

    step: int
    tokens: int
    flops: float  # of training
    seconds: float  # of training, validations apart; NaN where no speed was logged
    metrics: dict[str, float]


class Run(NamedTuple):
    """One run, finished or not; `arm` is what it is compared as."""

    name: str
    arm: str
    folder: Path
    cfg: RunConfig
    curve: tuple[Point, ...]
    violation: tuple[tuple[int, float], ...]  # steps and `moe/max_violation`
    experts: dict[str, float]  # `moe/*` at the last logged step, by layer too
    tokens_per_second: float | None  # of training, median
    peak_memory: int | None  # bytes
    speeds: dict[str, float]  # `prefill/CONTEXT/BATCH` and `decode/CONTEXT/BATCH`, tokens a second
    environment: dict[str, Any]  # `machine.environment` of the profile

    @property
    def seed(self) -> int:
        """Of data order and initialisation."""
        return self.cfg.seed

    @property
    def lr(self) -> float:
        """Peak learning rate."""
        return self.cfg.optim.lr

    @property
    def last(self) -> Point:
        """The last validation; step 0 without any."""
        return self.curve[-1] if self.curve else Point(0, 0, 0.0, 0.0, {})

    @property
    def final(self) -> dict[str, float]:
        """`val/*` at the end of training; empty before it."""
        return self.last.metrics if self.last.step == self.cfg.trainer.max_steps else {}

    @property
    def status(self) -> str:
        """`finished`, `diverged` where the final loss is not finite, or how far it is."""
        if not self.final:
            return f"step {self.last.step} of {self.cfg.trainer.max_steps}"
        return "finished" if math.isfinite(self.final["val/loss"]) else "diverged"

    @property
    def finished(self) -> bool:
        """Whether there are final figures to compare."""
        return self.status == "finished"

    @property
    def val_loss(self) -> float:
        """Final, in nats a token; KeyError before the end."""
        return self.final["val/loss"]

    @property
    def val_bpb(self) -> float:
        """Final bits per byte; KeyError before the end."""
        return self.final["val/bpb"]

    @property
    def axes(self) -> dict[str, float]:
        """What it costs, by the names of `budget.AXES`."""
        return budget.axes(self.cfg)


def read_run(folder: Path, *, arm: str, name: str) -> Run:
    """The run in a folder; UserError for a folder that holds none, or a damaged one."""
    stored = _json(folder / CONFIG_FILE)
    if "run_id" not in stored:
        raise UserError(f"{folder}: no run, for it lacks a {CONFIG_FILE} with a run_id")
    try:
        cfg = RunConfig.model_validate(completed(stored))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / CONFIG_FILE}: does not fit this version of mla_lm ({one_line(error)})"
        ) from None
    logged = _logged(folder)
    speeds = {step: row[SPEED] for step, row in logged.items() if SPEED in row}
    experts = [{k: v for k, v in row.items() if k.startswith("moe/")} for row in logged.values()]
    profile = _json(folder / "metrics.json")
    return Run(
        name=name,
        arm=arm,
        folder=folder,
        cfg=cfg,
        curve=_curve(cfg, logged, speeds),
        violation=tuple((step, row[VIOLATION]) for step, row in logged.items() if VIOLATION in row),
        experts=next(filter(None, reversed(experts)), {}),
        tokens_per_second=statistics.median(speeds.values()) if speeds else None,
        peak_memory=_json(folder / "cost.json").get("peak_memory"),
        speeds={key: value for key, value in profile.items() if key.startswith(SPEEDS)},
        environment=profile.get("environment", {}),
    )


def runs_below(folder: Path) -> list[Run]:
    """Every run in a folder, by path; an arm is named by the keys in which configurations differ.

    Raises UserError for a damaged one.
    """
    places = sorted(path.parent for path in folder.rglob(CONFIG_FILE) if "run_id" in _json(path))
    runs = [
        read_run(place, arm="", name=place.relative_to(folder).as_posix().lstrip(".") or place.name)
        for place in places
    ]
    names = arm_names([configuration(run.cfg) for run in runs])
    return [run._replace(arm=name) for run, name in zip(runs, names, strict=True)]


def configuration(cfg: RunConfig) -> dict[str, Any]:
    """Dotted keys and values of all that makes an arm: not the seed, nor where or what to log."""
    values = leaves(cfg.model_dump(mode="json"))
    return {key: value for key, value in values if not key.startswith(FREE)}


def arm_names(configurations: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fewest words that tell them apart, kinds first; equal ones get equal names."""
    keys = list(dict.fromkeys(key for values in configurations for key in values))
    keys.sort(key=lambda key: KINDS.index(key) if key in KINDS else len(KINDS))

    def names(chosen: Sequence[str]) -> list[str]:
        words = ([_word(values, key) for key in chosen] for values in configurations)
        return [" ".join(filter(None, found)) for found in words]

    def n_names(chosen: Sequence[str]) -> int:
        return len({*names(chosen)})

    chosen: list[str] = []
    for key in KINDS:
        if n_names([*chosen, key]) > max(1, n_names(chosen)):
            chosen.append(key)
    while n_names(chosen) < n_names(keys):
        chosen.append(max(keys, key=lambda key: n_names([*chosen, key])))
    return names(chosen or KINDS[:1])


def _word(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return ""
    value = values[key]
    if key in KINDS:
        return str(value)
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def _curve(
    cfg: RunConfig, logged: Mapping[int, Mapping[str, float]], speeds: Mapping[int, float]
) -> tuple[Point, ...]:
    """The validations; a speed holds from the step it was logged before."""
    per_step = cfg.data.batch_size * cfg.data.seq_len * cfg.trainer.accumulate_grad_batches
    flops = train_flops_per_token(cfg.model, cfg.data.seq_len)
    steps = np.array([0, *speeds], dtype=float)
    clock = np.cumsum([0.0, *(np.diff(steps) * per_step / [*speeds.values()])])
    points = []
    for step, row in logged.items():
        if "val/loss" not in row:
            continue
        seconds = math.nan
        if speeds:  # behind the last logged step it went on at the last speed
            behind = max(0.0, step - steps[-1]) * per_step / [*speeds.values()][-1]
            seconds = float(np.interp(step, steps, clock)) + behind
        metrics = {key: value for key, value in row.items() if key.startswith("val/")}
        tokens = step * per_step
        points.append(Point(step, tokens, tokens * flops, seconds, metrics))
    return tuple(points)


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
                found.setdefault(int(values["step"]) + 1, {}).update(values)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not the metrics of a run ({one_line(error)})") from None
    return dict(sorted(found.items()))


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is no file. Raises UserError for anything else."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path}: no JSON ({one_line(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: no JSON object")
    return content
