"""Run folders made by hand, as `train.py` and a study leave them."""

import csv
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
NAMES = {
    **{"speed": "train/tokens_per_second", "violation": "moe/max_violation"},
    **{"loss": "val/loss", "bpb": "val/bpb", "match": "val/exact_match"},
}


@cache
def config(*overrides: str) -> RunConfig:
    return load_config([*BASE, *overrides])


def row(step: int, **values: float) -> dict[str, float]:
    """What is logged after `step` steps."""
    return {"epoch": 0, "step": step - 1, **{NAMES[key]: value for key, value in values.items()}}


def usual(final: float, *, speed: float = 1000.0) -> list[dict[str, float]]:
    """Rows of a run of 40 steps whose bits per byte come to `final`."""
    rows = [row(step, speed=speed, violation=4 / step) for step in (10, 20, 30, 40)]
    return [*rows, row(20, loss=2 * final + 2, bpb=final + 1), row(40, loss=2 * final, bpb=final)]


def write_run(
    folder: Path,
    *versions: Sequence[Mapping[str, float]],
    overrides: Sequence[str] = (),
    seed: int = 1,
    costs: Mapping[str, float] | None = None,
) -> Path:
    """A run folder with a version of the metrics for each start."""
    folder.mkdir(parents=True)
    own = {"seed": seed, "run_dir": str(folder), "run_id": "made"}
    (folder / "config.json").write_text(
        config(*overrides).model_copy(update=own).model_dump_json(indent=2)
    )
    for version, rows in enumerate(versions):
        path = folder / "metrics" / f"version_{version}" / "metrics.csv"
        path.parent.mkdir(parents=True)
        with path.open("w") as file:
            keys = dict.fromkeys(key for one in rows for key in one)
            writer = csv.DictWriter(file, keys, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    if costs is not None:
        (folder / "cost.json").write_text(json.dumps(costs))
    return folder


def read(*folders: Path, arm: str | None = None) -> Runs:
    """The runs in folders of the form ARM-sSEED, which name their arms."""
    arms = {folder.name: arm or folder.name.rpartition("-")[0] for folder in folders}
    runs = read_runs({folder.name: folder for folder in folders}, arms)
    assert runs
    return runs
