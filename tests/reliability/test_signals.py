"""SIGTERM, SIGUSR1 and Ctrl-C: the step is finished and saved, and the run resumes without a trace.

The exit status is 143, or 130.
"""

import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.checkpoint.find import newest, saved, step_of
from mla_lm.errors import INTERRUPTED, STOPPED
from mla_lm.training.module import LanguageModel
from tests.reliability.child import slowly, tell_myself
from tests.reliability.conftest import Reference, undisturbed
from tests.reliability.record import record
from tests.reliability.runs import (
    checkpoint,
    differences,
    resumption,
    run,
    short,
    start,
    state,
    status,
    steps,
    wait,
)

WINDOW = ("data.batch_size=1", "trainer.accumulate_grad_batches=3")
VALIDATION = "epoch_loop.val_loop.batch_progress"


def in_validation(path: Path) -> bool:
    progress = checkpoint_file.read(path, "loops")["loops"]["fit_loop"][VALIDATION]["current"]
    return bool(progress["ready"] != progress["completed"])


@pytest.fixture(scope="module")
def accumulated(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """An undisturbed run with three forward passes per step."""
    folder = tmp_path_factory.mktemp("accumulated") / "run"
    return undisturbed(short(corpus, *WINDOW), folder)


@pytest.mark.slow
def test_signals_at_random_times(
    reference: Reference, accumulated: Reference, tmp_path: Path
) -> None:
    cut_short: list[int] = []

    def trial(number: int) -> str | None:
        whole = (reference, accumulated)[number % 2]
        folder, rng = tmp_path / str(number), random.Random(number)
        log = folder.with_suffix(".log")
        words = [*whole.words, f"run_dir={folder}", "resume=auto"]
        process = start(words, log, partial(slowly, 0.05))
        while "step 1/" not in (log.read_text() if log.exists() else ""):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.9))
        os.kill(process.pid or 0, (signal.SIGTERM, signal.SIGUSR1)[number // 2 % 2])
        ended, path, done = wait(process), newest(folder), steps(log)
        if ended == 0:  # before the signal came
            return None
        if ended != STOPPED or path is None:
            return f"{number}: status {ended}, {path}\n{log.read_text()}"
        if step_of(path) != done[-1]:
            return f"{number}: did the steps {done}, saved {path}"
        if in_validation(path):
            cut_short.append(number)
        return resumption(folder, whole.words, whole.end)

    with ThreadPoolExecutor(2) as pool:
        found = [wrong for wrong in pool.map(trial, range(40)) if wrong is not None]
    record("signals at random times, exit status 143", found.count(""), len(found))
    assert cut_short, "no signal came in a validation"
    assert [wrong for wrong in found if wrong] == []


@pytest.mark.parametrize(
    ("number", "stage", "batch", "step"),
    [
        (signal.SIGTERM, "training", 3, 2),
        (signal.SIGUSR1, "training", 5, 2),
        (signal.SIGINT, "validation", 1, 3),
    ],
)
def test_the_window_is_finished_and_the_validation_starts_again(
    accumulated: Reference, tmp_path: Path, number: int, stage: str, batch: int, step: int
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    words = [*accumulated.words, f"run_dir={folder}"]
    status = INTERRUPTED if number == signal.SIGINT else STOPPED
    assert run(words, log, partial(tell_myself, number, stage, batch)) == status
    assert f"stopped and saved at step {step}\n" in log.read_text()
    assert newest(folder) == checkpoint(folder, step)
    assert in_validation(checkpoint(folder, step)) == (stage == "validation")
    assert resumption(folder, accumulated.words, accumulated.end) == ""


def test_the_last_validation_is_finished(reference: Reference, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    change = partial(tell_myself, signal.SIGTERM, "validation", 1, 12)
    assert run([*reference.words, f"run_dir={folder}"], log, change) == STOPPED
    assert "stopped and saved at step 12\n" in log.read_text()
    assert differences(state(checkpoint(folder, 12)), reference.end) == []


def test_the_clock_saves_too(reference: Reference, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    often = ("checkpoint.every_minutes=1e-6", "checkpoint.every_n_steps=99", "checkpoint.keep=99")
    assert run([*reference.words, f"run_dir={folder}", *often], log) == 0
    assert [step_of(path) for path in saved(folder / "checkpoints")] == list(range(12, 0, -1))


def test_a_second_signal_ends_at_once(reference: Reference, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    process = start([*reference.words, f"run_dir={folder}"], log, partial(slowly, 60))
    while "waiting" not in (log.read_text() if log.exists() else ""):
        assert status(process) is None, log.read_text()
        time.sleep(0.01)
    n_signals = 0
    while status(process) is None:  # two may arrive as one
        os.kill(process.pid or 0, signal.SIGTERM)
        n_signals += 1
        time.sleep(0.5)
    assert n_signals >= 2, log.read_text()
    assert wait(process) == STOPPED
    assert newest(folder) is None


def test_before_it_trains_a_run_ends_at_once(reference: Reference, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    assert run([*reference.words, f"run_dir={folder}"], log, tell_when_built) == STOPPED
    assert newest(folder) is None


def tell_when_built() -> None:
    build = LanguageModel.__init__

    def telling(self: Any, *args: Any) -> None:
        build(self, *args)
        os.kill(os.getpid(), signal.SIGTERM)

    LanguageModel.__init__ = telling  # type: ignore[method-assign]
