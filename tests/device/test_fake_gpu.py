"""Training on GPUs that are not here: one device, few host waits, and no more work than stored."""

import json
import sys
from pathlib import Path

import pytest

from tests.processes import run

STORED = json.loads(Path(__file__).with_name("figures.json").read_text(encoding="utf-8"))
GROWTH = 1.05


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="patches torch's library for Linux")
@pytest.mark.parametrize("gpu", list(STORED))
def test_a_step_and_a_resumed_one(gpu: str, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    ended = run("-m", "tests.device.child", gpu, str(out), cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    for name, found in json.loads(out.read_text(encoding="utf-8")).items():
        stored = STORED[gpu][name]
        assert "error" not in found, (name, found)
        assert (found["waits"], found["kernels"]) == (stored["waits"], stored["kernels"]), name
        for figure in ("launches", "bytes"):
            assert found[figure] <= GROWTH * stored[figure], (name, figure)
