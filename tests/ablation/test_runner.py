"""Real studies of tiny runs: killed and resumed, failed cells, folders that are not theirs."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mla_lm.files import claimed, read_object
from tests.processes import command, environment, run
from tests.runs.conftest import short_run, write_corpus

MINE = """
question: Does it resume?
arms: {mla: [], gqa: [model/attention=gqa]}
reference: mla
seeds: [1, 2]
"""
STEPS = ("trainer.max_steps=6", "trainer.val_every_n_steps=6", "checkpoint.every_n_steps=2")


@pytest.fixture
def study(tmp_path: Path) -> list[str]:
    """The command of a study of two arms and two seeds below `tmp_path`, out apart."""
    write_corpus(tmp_path / "text")
    (tmp_path / "mine.yaml").write_text(MINE)
    keys = {word.partition("=")[0] for word in STEPS}
    rest = [word for word in short_run(tmp_path) if word.partition("=")[0] not in keys]
    return ["-m", "mla_lm", "ablate", f"ablation={tmp_path / 'mine.yaml'}", *rest, *STEPS]


def versions(out: Path) -> dict[str, int]:
    """How often each cell has been started."""
    cells = sorted((out / "cells").iterdir())
    return {cell.name: len([*cell.glob("metrics/version_*")]) for cell in cells}


def signalled(number: int, words: list[str], condition: Callable[[], bool], cwd: Path) -> int:
    """The exit status of a command that gets a signal once `condition()` holds."""
    process = subprocess.Popen(
        command(*words), cwd=cwd, env=environment(), stdout=subprocess.DEVNULL
    )
    until = time.monotonic() + 600
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(process.pid, number)
    return process.wait(600)


def at_step(log: Path, step: int) -> Callable[[], bool]:
    return lambda: log.exists() and f"step {step}/" in log.read_text()


@pytest.mark.slow
def test_a_killed_study_ends_with_the_same_results(study: list[str], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    result = run(*study, f"out={whole}", "jobs=2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert set(versions(whole).values()) == {1}
    second = cut / "logs" / "gqa-s1.log"
    signalled(signal.SIGKILL, [*study, f"out={cut}"], at_step(second, 3), tmp_path)
    assert not (cut / "results.csv").exists()

    result = run(*study, f"out={cut}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert versions(cut) == {"gqa-s1": 2, "gqa-s2": 1, "mla-s1": 1, "mla-s2": 1}
    assert "resumed" in second.read_text()
    assert "mla-s1: skipped" in result.stdout
    stored = [read_object(out / "cells" / "gqa-s1" / "config.json") for out in (whole, cut)]
    assert stored[0]["callbacks"] == stored[1]["callbacks"]  # of the study, not the default ones
    expected = (whole / "results.csv").read_bytes()
    assert (cut / "results.csv").read_bytes() == expected
    assert (cut / "report.html").stat().st_size > 10_000

    (cut / "results.csv").unlink()
    result = run(*study[:3], f"report={cut}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (cut / "results.csv").read_bytes() == expected

    result = run(*study, f"out={cut}", "optim.lr=0.01", cwd=tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "belongs to another study, whose base differs" in result.stderr


@pytest.mark.slow
def test_a_sweep_and_more_seeds(study: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("{question: q, arms: {mla: []}, reference: mla}")
    out = tmp_path / "it's a study"
    words = (*study, f"out={out}", "lr_grid=0.001,0.01", "jobs=2")
    assert run(*words, "seeds=1,2", cwd=tmp_path).returncode == 0
    (second,) = (name for name in versions(out) if name.endswith("-s2"))
    text = (out / "report.md").read_text()
    assert "is at the end of its grid" in text
    assert "measured with 2 cells at a time" in text
    assert run(*words, "seeds=1,2,3", "confidence=0.9", cwd=tmp_path).returncode == 0
    third = second.replace("-s2", "-s3")
    assert versions(out) == dict.fromkeys(["mla-lr0.001-s1", "mla-lr0.01-s1", second, third], 1)


@pytest.mark.slow
def test_ctrl_c_lets_the_cells_save(study: list[str], tmp_path: Path) -> None:
    out = tmp_path / "study"
    words = [*study, f"out={out}", "trainer.max_steps=600", "checkpoint.every_n_steps=1000"]
    assert signalled(signal.SIGINT, words, at_step(out / "logs" / "mla-s1.log", 3), tmp_path) == 130
    (saved,) = (out / "cells" / "mla-s1" / "checkpoints").glob("step-*.ckpt")
    assert saved.name >= "step-000003"
    assert not (out / "cells" / "gqa-s1").exists()


@pytest.mark.slow
def test_a_failed_cell_does_not_stop_the_others(study: list[str], tmp_path: Path) -> None:
    arms = "{mla: [], lost: [trainer.accelerator=gpu], gqa: [model/attention=gqa]}"
    text = MINE.replace("{mla: [], gqa: [model/attention=gqa]}", arms)
    (tmp_path / "mine.yaml").write_text(text)
    out = tmp_path / "study"
    result = run(*study, f"out={out}", "seeds=1", "confidence=null", cwd=tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "1 of 3 cells failed: lost-s1 (error: trainer.accelerator=gpu: torch" in result.stderr
    assert "gqa-s1: finished  step 6  val/loss" in result.stdout
    assert (out / "results.csv").read_text().count("\n") == 3


def test_a_folder_that_is_not_this_study_s_is_refused(study: list[str], tmp_path: Path) -> None:
    result = run(*study, f"out={tmp_path / 'text'}", cwd=tmp_path)
    assert result.returncode == 2
    assert "text: not empty, and no study; name a new folder" in result.stderr
    with claimed(tmp_path / "study", key="out"):
        result = run(*study, f"out={tmp_path / 'study'}", cwd=tmp_path)
    assert result.returncode == 2
    assert "another process works there" in result.stderr
