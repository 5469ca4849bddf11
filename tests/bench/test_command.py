"""`bench suite=all` measures what it can and says what it leaves out."""

import json
from pathlib import Path

import pytest

from mla_lm.bench import checkpoint, data, decode, moe, quality, scale, train
from mla_lm.bench.report import Row
from mla_lm.commands import bench


def test_all_suites(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value, suite in enumerate((data, decode, moe, quality, checkpoint, scale), start=1):
        rows = [Row("figure", value, "s", peak=1234.0 * value)]
        monkeypatch.setattr(suite, "run", lambda *_, rows=rows: rows)

    def lacking() -> list[Row]:
        raise ModuleNotFoundError("No module named 'transformers'")

    monkeypatch.setattr(train, "run", lacking)
    out = tmp_path / "figures.json"
    bench.run(["suite=all", f"out={out}"])
    suites = {found["suite"]: found["rows"][0]["value"] for found in json.loads(out.read_text())}
    assert suites == {"data": 1, "decode": 2, "moe": 3, "quality": 4, "checkpoint": 5, "scale": 6}
    said = capsys.readouterr().out
    assert "suite train left out: No module named 'transformers'" in said
    assert "suite evaluation left out: suite=evaluation: needs ckpt=PATH" in said
    assert "2,468" in said
