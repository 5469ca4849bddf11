"""The figures of a GPU with a tiny model on the CPU: every one comes out of real work."""

import shutil

import pytest

from mla_lm.bench import gpu
from tests.conftest import TINY

WIDE = ("model.dim=32", "model.ffn.moe_inter_dim=32")  # as grouped_mm wants them
WORDS = (*TINY, *WIDE, "data.batch_size=2", "model.mtp_depth=0", "optim=adamw")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_every_figure_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    monkeypatch.setattr(gpu, "WARM_UP", 1)
    monkeypatch.setattr(gpu, "NEW", 8)
    rows = {row.name: row for row in gpu.run(WORDS, "cpu")}
    assert len(rows) == 9
    assert all(row.value > 0 for row in rows.values())
    assert sum(row.peak > 0 for row in rows.values()) == 4
    ours, theirs = rows["GPU: ours, compiled"], rows["GPU: transformers, compiled"]
    ratio = rows["GPU: ours, compiled / transformers, compiled"]
    assert ratio.value == pytest.approx(ours.value / theirs.value)
