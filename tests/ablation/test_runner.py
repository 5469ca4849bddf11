"""Real studies of tiny runs: killed and continued, failed cells, folders that are not theirs."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import command, environment, run
from tests.runs.conftest import short_run, write_corpus

STEPS = 6
MINE = """
question: Does it resume?
arms: {mla: [], gqa: [model/attention=gqa]}
reference: mla
base: []
seeds: [1, 2]
"""


@pytest.fixture
def study(tmp_path: Path) -> list[str]:
    """The command of a study of two arms and two seeds below `tmp_path`, out apart."""
    write_corpus(tmp_path / "text")
    (tmp_path / "mine.yaml").write_text(MINE)
    steps = (f"trainer.max_steps={STEPS}", f"trainer.val_every_n_steps={STEPS}")
    words = [word for word in short_run(tmp_path) if "max_steps" not in word]
    words = [word for word in words if "val_every" not in word and "every_n_steps=5" not in word]
    saves = "checkpoint.every_n_steps=2"
    return ["-m", "mla_lm", "ablate", f"ablation={tmp_path / 'mine.yaml'}", *words, *steps, saves]


def starts(out: Path) -> dict[str, int]:
    """How often each cell has been started."""
    logs = sorted((out / "logs").glob("*.log"))
    return {log.stem: log.read_text().count("\n$ ") + 1 for log in logs}


def killed_when(words: list[str], condition: Callable[[], bool], cwd: Path) -> None:
    """Start a study and `kill -9` its runner once `condition()` holds."""
    process = subprocess.Popen(
        command(*words),
        cwd=cwd,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 120
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_a_killed_study_ends_with_the_same_results(study: list[str], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    result = run(*study, f"out={whole}", "jobs=2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert set(starts(whole).values()) == {1}

    second = cut / "logs" / "gqa-s1.log"

    def half_way() -> bool:
        return second.exists() and "step 3/" in second.read_text()

    killed_when([*study, f"out={cut}"], half_way, tmp_path)
    assert not (cut / "results.csv").exists()
    result = run(*study, f"out={cut}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert starts(cut) == {"mla-s1": 1, "gqa-s1": 2, "mla-s2": 1, "gqa-s2": 1}
    assert "resumed" in second.read_text()
    assert "mla-s1: skipped" in result.stdout
    assert (cut / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
    assert (cut / "report.html").stat().st_size > 10_000

    (cut / "results.csv").unlink()
    result = run(*study[:3], f"report={cut}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (cut / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()

    result = run(*study, f"out={cut}", "optim.lr=0.01", cwd=tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "belongs to another study, whose base differs" in result.stderr


@pytest.mark.slow
def test_a_sweep_and_more_seeds(study: list[str], tmp_path: Path) -> None:
    out = tmp_path / "it's a study"
    words = (*study, f"out={out}", "lr_grid=0.001,0.01", "jobs=2")
    result = run(*words, "seeds=1,2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(starts(out)) == 2 * 2 + 2
    text = (out / "report.md").read_text()
    assert "is at the end of its grid" in text
    assert "measured with 2 cells at a time" in text
    costs = (out / "costs.csv").read_text().splitlines()
    assert all(costs[0].count(",") == line.count(",") for line in costs)
    grown = run(*words, "seeds=1,2,3", "confidence=0.9", cwd=tmp_path)
    assert grown.returncode == 0, grown.stderr
    assert set(starts(out).values()) == {1}
    assert len(starts(out)) == 2 * 2 + 4
    assert "90 % CI" in (out / "report.md").read_text()


@pytest.mark.slow
def test_ctrl_c_lets_the_cells_save(study: list[str], tmp_path: Path) -> None:
    out = tmp_path / "study"
    log = out / "logs" / "mla-s1.log"
    long = ("trainer.max_steps=600", "checkpoint.every_n_steps=1000")
    process = subprocess.Popen(
        command(*study, f"out={out}", *long), cwd=tmp_path, env=environment()
    )
    while not (log.exists() and "step 3/" in log.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    (saved,) = (out / "cells" / "mla-s1" / "checkpoints").glob("step-*.ckpt")
    assert saved.name >= "step-000003"
    assert not (out / "cells" / "gqa-s1").exists()


@pytest.mark.slow
def test_a_failed_cell_does_not_stop_the_others(study: list[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    arms = "{mla: [], lost: [trainer.accelerator=gpu], gqa: [model/attention=gqa]}"
    file.write_text(MINE.replace("{mla: [], gqa: [model/attention=gqa]}", arms))
    out = tmp_path / "study"
    result = run(*study, f"out={out}", "seeds=1", "confidence=null", cwd=tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "1 of 3 cells failed: lost-s1 (error: trainer.accelerator=gpu: torch" in result.stderr
    assert "gqa-s1: finished  val/bpb" in result.stdout
    assert (out / "results.csv").read_text().count("\n") >= 3


def test_a_strange_folder_is_refused(study: list[str], tmp_path: Path) -> None:
    result = run(*study, f"out={tmp_path / 'text'}", cwd=tmp_path)
    assert result.returncode == 2
    assert "text: not empty, and no study; name a new folder" in result.stderr


def test_a_folder_in_use_is_refused(study: list[str], tmp_path: Path) -> None:
    from mla_lm.files import claimed

    with claimed(tmp_path / "study", key="out"):
        result = run(*study, f"out={tmp_path / 'study'}", cwd=tmp_path)
    assert result.returncode == 2
    assert "another process works there" in result.stderr


def test_the_plan_is_shown_and_nothing_run(study: list[str], tmp_path: Path) -> None:
    result = run(*study, f"out={tmp_path / 'study'}", "plan=true", cwd=tmp_path)
    assert result.returncode == 0
    assert all(name in result.stdout for name in ("mla", "gqa", "kv_bytes", "train_flops"))
    assert not (tmp_path / "study").exists()
