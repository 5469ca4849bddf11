"""Run folders made by hand, as `train.py` and a study leave them."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from mla_lm import load_config
from mla_lm.ablation.results import Run, read_run
from mla_lm.config import RunConfig

BASE = ("model=nano", "data.seq_len=64", "data.batch_size=4", "trainer.max_steps=40")
PER_STEP = 4 * 64  # tokens
COLUMNS = ("step", "train/tokens_per_second", "moe/max_violation", "moe/layer_1/max_violation")
VAL = ("val/loss", "val/bpb")


@cache
def config(*words: str) -> RunConfig:
    return load_config([*BASE, *words])


def row(step: int, **values: float) -> dict[str, float]:
    """What is logged after `step` steps; `_` stands for the stage's slash."""
    named = {"speed": "train/tokens_per_second", "violation": "moe/max_violation"}
    named |= {"layer": "moe/layer_1/max_violation", "loss": "val/loss", "bpb": "val/bpb"}
    named |= {"match": "val/exact_match"}
    return {"step": step - 1, **{named[key]: value for key, value in values.items()}}


def usual(final: float, *, speed: float = 1000.0) -> list[dict[str, float]]:
    """Rows of a run of 40 steps whose bits per byte come to `final`."""
    rows = []
    for step in (10, 20, 30, 40):
        rows.append(row(step, speed=speed, violation=4 / step, layer=5 / step))
        if step % 20 == 0:
            bpb = final + (40 - step) / 20
            rows.append(row(step, loss=2 * bpb, bpb=bpb))
    return rows


def write_run(
    folder: Path,
    versions: Sequence[Sequence[Mapping[str, float]]],
    *,
    words: Sequence[str] = (),
    seed: int = 1,
    speeds: Mapping[str, float] | None = None,
    peak_memory: int | None = None,
) -> Path:
    """A run folder with a version of the metrics for each start."""
    cfg = config(*words).model_copy(update={"seed": seed, "run_dir": str(folder), "run_id": "made"})
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(cfg.model_dump_json(indent=2))
    for version, rows in enumerate(versions):
        path = folder / "metrics" / f"version_{version}" / "metrics.csv"
        path.parent.mkdir(parents=True)
        keys = sorted({key for one in rows for key in one})
        lines = [keys, *([str(one.get(key, "")) for key in keys] for one in rows)]
        path.write_text("".join(",".join(line) + "\n" for line in lines))
    if speeds is not None:
        environment = {"torch": "2.13.0", "device": "made by hand"}
        (folder / "metrics.json").write_text(json.dumps({"environment": environment, **speeds}))
    if peak_memory is not None:
        (folder / "cost.json").write_text(json.dumps({"peak_memory": peak_memory}))
    return folder


def made_run(folder: Path, arm: str, seed: int, final: float, *words: str, **rest: float) -> Run:
    """A finished run of an arm, written and read."""
    name = f"{arm}-s{seed}" + "".join(f"-{word}" for word in words if "lr=" in word)
    write_run(folder / name, [usual(final, **rest)], words=words, seed=seed)
    return read_run(folder / name, arm=arm, name=name)
