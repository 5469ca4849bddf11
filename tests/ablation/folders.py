"""Run folders made by hand, as `train.py` and a study leave them."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from mla_lm import load_config
from mla_lm.ablation.runs import Runs, read_runs
from mla_lm.config import RunConfig

BASE = ("model=nano", "data.seq_len=64", "data.batch_size=4", "trainer.max_steps=40")
PER_STEP = 4 * 64  # tokens
GQA = "model/attention=gqa"


@cache
def config(*overrides: str) -> RunConfig:
    return load_config([*BASE, *overrides])


def row(step: int, **values: float) -> dict[str, float]:
    """What is logged after `step` steps."""
    named = {"speed": "train/tokens_per_second", "violation": "moe/max_violation"}
    named |= {"loss": "val/loss", "bpb": "val/bpb", "match": "val/exact_match"}
    return {"step": step - 1, **{named[key]: value for key, value in values.items()}}


def usual(final: float, *, speed: float = 1000.0) -> list[dict[str, float]]:
    """Rows of a run of 40 steps whose bits per byte come to `final`."""
    rows = []
    for step in (10, 20, 30, 40):
        rows.append(row(step, speed=speed, violation=4 / step))
        if step % 20 == 0:
            bpb = final + (40 - step) / 20
            rows.append(row(step, loss=2 * bpb, bpb=bpb))
    return rows


def write_run(
    folder: Path,
    versions: Sequence[Sequence[Mapping[str, float]]],
    *overrides: str,
    seed: int = 1,
    costs: Mapping[str, float] | None = None,
) -> Path:
    """A run folder with a version of the metrics for each start."""
    own = {"seed": seed, "run_dir": str(folder), "run_id": "made"}
    folder.mkdir(parents=True)
    cfg = config(*overrides).model_copy(update=own)
    (folder / "config.json").write_text(cfg.model_dump_json(indent=2))
    for version, rows in enumerate(versions):
        path = folder / "metrics" / f"version_{version}" / "metrics.csv"
        path.parent.mkdir(parents=True)
        keys = sorted({key for one in rows for key in one})
        lines = [keys, *([str(one.get(key, "")) for key in keys] for one in rows)]
        path.write_text("".join(",".join(line) + "\n" for line in lines))
    if costs is not None:
        (folder / "cost.json").write_text(json.dumps(costs))
    return folder


def read(*folders: Path, arm: str | None = None) -> Runs:
    """The runs in folders of the form ARM-sSEED, which name their arms."""
    arms = {folder.name: arm or folder.name.rpartition("-")[0] for folder in folders}
    return read_runs({folder.name: folder for folder in folders}, arms)
