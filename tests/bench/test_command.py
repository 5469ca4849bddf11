"""The command `bench`: suites that cannot run are skipped; how figures are taken."""

import json
from pathlib import Path

import pytest

from mla_lm.bench import decode, quality, report, train
from mla_lm.bench.report import Row, in_processes, interleaved, ratio, row
from mla_lm.commands import bench
from mla_lm.errors import UserError


def test_all_suites_that_can_run_are_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacking() -> list[Row]:
        raise ModuleNotFoundError("No module named 'transformers'")

    monkeypatch.setattr(train, "run", lacking)
    for value, suite in enumerate((decode, quality), start=1):
        rows = [Row("figure", value, "s", peak_mib=1234.0 * value)]
        monkeypatch.setattr(suite, "run", lambda *_, rows=rows: rows)
    out = tmp_path / "figures.json"
    bench.run(["suite=all", f"out={out}"])
    written = {suite: rows[0]["value"] for suite, rows in json.loads(out.read_text()).items()}
    assert written == {"decode": 1, "quality": 2}
    said = capsys.readouterr().out
    assert "suite train skipped: No module named 'transformers'" in said
    assert "suite gpu skipped: suite=gpu: torch finds no CUDA GPU" in said
    assert "2,468" in said


def test_figures_are_written_before_they_are_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unread(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(train, "run", lambda: [Row("figure", 1.0, "s")])
    monkeypatch.setattr(report, "show", unread)
    with pytest.raises(BrokenPipeError):
        bench.run([f"out={tmp_path / 'figures.json'}"])
    assert (tmp_path / "figures.json").stat().st_size > 0


@pytest.mark.parametrize("word", ["suite=data", "minutes=0", "out="])
def test_mistakes_name_the_option(word: str) -> None:
    with pytest.raises(UserError, match=word.partition("=")[0]):
        bench.run([word])


def test_rounds_are_interleaved_and_shown_as_medians_of_ratios() -> None:
    order: list[str] = []

    def task(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = interleaved({name: lambda name=name: task(name) for name in "ab"}, rounds=3)
    assert found == {"a": [1, 3, 5], "b": [2, 4, 6]}
    assert order == ["a", "b"] * 3
    assert row("x", [4.0, 1.0, 2.5], "s") == Row("x", 2.5, "s", "1 .. 4")
    assert ratio("x", *reversed(found.values())).value == 4 / 3  # of 2, 4 / 3 and 6 / 5


class Counter:
    """Counts its calls and takes memory, in whatever process it lives."""

    n = 0

    def __call__(self) -> int:
        self.n += 1
        self.block = bytearray(50 * 2**20)
        return self.n


def test_every_side_has_a_process_of_its_own() -> None:
    found, peaks = in_processes({"one": Counter, "other": Counter}, rounds=2, warm_up=1)
    assert found == {"one": [2, 3], "other": [2, 3]}
    assert all(50 <= peak < 200 for peak in peaks.values())
