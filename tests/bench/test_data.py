"""The figures of suite `data` come out of real work; how large they are is not tested."""

import json
from pathlib import Path

import pytest

from mla_lm.bench import data
from mla_lm.bench.report import Row, interleaved, median_row
from tests.processes import run


def test_rounds_are_interleaved() -> None:
    order: list[str] = []

    def task(name: str) -> float:
        order.append(name)
        return float(len(order))

    assert interleaved([lambda: task("a"), lambda: task("b")], rounds=3) == [[1, 3, 5], [2, 4, 6]]
    assert order == ["a", "b"] * 3


def test_a_row_holds_median_and_spread() -> None:
    assert median_row("x", [4.0, 1.0, 2.5], "s") == Row("x", 2.5, "s", "1 .. 4")


def test_ten_gigabytes_of_tokens_open_and_give_a_batch(tmp_path: Path) -> None:
    (row,) = data.opening(tmp_path)
    assert row.value > 0
    sizes = [path.stat().st_size for path in (tmp_path / "sparse").glob("train-*.bin")]
    assert sum(sizes) >= 10**10
    assert sum(p.stat().st_blocks for p in (tmp_path / "sparse").iterdir()) * 512 < 10**8


def test_corpus_has_the_size_asked_for(tmp_path: Path) -> None:
    data.write_corpus(tmp_path / "corpus.jsonl", 10**6)
    lines = (tmp_path / "corpus.jsonl").read_text().splitlines()
    assert len({json.loads(line)["text"] for line in lines}) == len(lines) > 10
    assert 10**6 <= sum(len(json.loads(line)["text"]) for line in lines) < 1.5 * 10**6


@pytest.mark.slow
def test_the_suite_runs_as_a_command(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    result = run("-m", "mla_lm", "bench", "megabytes=1,2", f"out={out}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = json.loads(out.read_text())["rows"]
    assert {"prepare 1 MB, memory", "load / train"} <= {r["name"] for r in rows}
    assert all(row["value"] > 0 for row in rows)
