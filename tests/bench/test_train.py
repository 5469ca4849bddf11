"""Suites `train` and `gpu` with a tiny model: unequal steps are found, every figure is measured."""

import shutil
from pathlib import Path

import pytest
import torch

from mla_lm import load_config
from mla_lm.bench import gpu, steps, train
from mla_lm.machine import Resolved
from tests.conftest import TINY

WIDE = ("model.dim=32", "model.sizes.moe_inter_dim=32")  # as grouped_mm wants them
OVERRIDES = (*TINY, *WIDE, "data.batch_size=2", "model.mtp_depth=0", "optim=adamw")


def test_a_step_that_differs_is_found(tmp_path: Path) -> None:
    cfg = load_config(OVERRIDES)
    steps.write_equal_peer(cfg, tmp_path)
    theirs = steps.peer(tmp_path, "eager")
    with torch.no_grad():
        theirs.model.get_parameter("lm_head.weight").mul_(1.01)
    with pytest.raises(AssertionError, match="not close"):
        steps.assert_equal(steps.ours(cfg), theirs, steps.batch(cfg))


@pytest.mark.parametrize("precision", train.PRECISIONS)
def test_a_step_learns_and_moves_the_biases(precision: Resolved) -> None:
    cfg = load_config([*OVERRIDES, "model.mtp_depth=1"])
    side = steps.ours(cfg)
    losses = [side.step(steps.batch(cfg), precision) for _ in range(6)]
    assert losses[-1] < losses[0]
    biases = [b for name, b in side.model.named_buffers() if name.endswith("correction_bias")]
    assert biases
    assert all(bias.any() for bias in biases)


@pytest.mark.slow
def test_every_figure_of_suite_train_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"ROUNDS": 1, "MODEL": OVERRIDES, "PRECISIONS": ("32-true",)}
    for name, value in values.items():
        monkeypatch.setattr(train, name, value)
    rows = {row.name: row for row in train.run()}
    assert len(rows) == 5 + 3 * 3
    assert all(row.value > 0 for row in rows.values())
    speeds = [row for row in rows.values() if row.unit == "tokens/s"]
    assert all(row.peak_mib > 0 for row in speeds)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_every_figure_of_suite_gpu_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    monkeypatch.setattr(gpu, "WARM_UP", 1)
    rows = {row.name: row for row in gpu.run(OVERRIDES, "cpu")}
    assert len(rows) == 4 + 2 + 1
    assert all(row.value > 0 for row in rows.values())
    ours, theirs = rows["ours, compiled"], rows["transformers, compiled"]
    ratio = rows["ours, compiled / transformers, compiled"]
    assert ratio.value == pytest.approx(ours.value / theirs.value)
