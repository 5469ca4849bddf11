"""`kill -9` at random times and at every point of a save: resumed, a run ends bit for bit alike."""

import itertools
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mla_lm import files as atomic
from mla_lm.checkpoint import file as checkpoint_file
from tests.processes import command, environment
from tests.reliability.child import slowly
from tests.reliability.conftest import Reference
from tests.reliability.record import record
from tests.reliability.runs import checkpoint, resumption, run, start, status, wait

ELSEWHERE = "/dev/shm"  # another device than that of the run
POINTS = (
    "before write",
    "half-way",
    "before fsync",
    "before replace",
    "after replace",
    "while pruning",
    "after pruning",
)


def wait_for(path: Path, poll: Callable[[], int | None]) -> None:
    while not path.exists() and poll() is None:
        time.sleep(0.001)


def killed_and_resumed(reference: Reference, place: Path, number: int) -> str | None:
    """What went wrong; None where the run had ended before it was killed."""
    folder = place / str(number)
    log = folder.with_suffix(".log")
    words = [*reference.words, f"run_dir={folder}", "resume=auto"]
    process = start(words, log, partial(slowly, 0.1))
    wait_for(checkpoint(folder, 2), partial(status, process))
    time.sleep(random.Random(number).uniform(0, 0.5))
    process.kill()
    if wait(process) != -signal.SIGKILL:
        return None
    return resumption(folder, reference.words, reference.end)


@pytest.mark.parametrize("trials", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_random_times(reference: Reference, tmp_path: Path, trials: int) -> None:
    trial = partial(killed_and_resumed, reference, tmp_path)
    numbers = itertools.count()
    found: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        while len(found) < trials:
            batch = itertools.islice(numbers, trials - len(found))
            found += [wrong for wrong in pool.map(trial, batch) if wrong is not None]
            assert next(numbers) < 3 * trials, "most runs end before they are killed"
    if trials == 200:
        record("`kill -9` at random times", found.count(""), trials)
    assert [wrong for wrong in found if wrong] == []


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(point: str, nth: int, temporary_folder: str | None) -> None:
    """Change this process so that it dies at a point of its nth save."""
    if temporary_folder is not None:
        os.environ["TMPDIR"] = tempfile.tempdir = temporary_folder
    saves = itertools.count(1)
    armed: list[str] = []

    def dying_at(here: str, function: Callable[..., Any], only: str) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            meant = point in armed and str(args[0]).endswith(only)
            if (meant and point == f"before {here}") or (point == f"while {here}" and meant):
                die()
            result = function(*args, **kwargs)
            if meant and point == f"after {here}":
                die()
            return result

        return wrapped

    write = checkpoint_file.save_file

    def dying_write(tensors: Any, path: Path, metadata: Any) -> None:
        if next(saves) == nth:
            armed.append(point)
        if point in armed and point == "before write":
            die()
        write(tensors, path, metadata)
        if point in armed and point == "half-way":
            os.truncate(path, path.stat().st_size // 2)
            die()

    checkpoint_file.save_file = dying_write
    os.replace = dying_at("replace", os.replace, ".ckpt")
    atomic.to_disk = dying_at("fsync", atomic.to_disk, ".ckpt")
    Path.unlink = dying_at("pruning", Path.unlink, ".ckpt")  # type: ignore[method-assign]


@pytest.mark.parametrize("saves", [(4,), pytest.param((3, 4, 5, 6, 7), marks=pytest.mark.slow)])
def test_killed_at_every_point_of_a_save(
    reference: Reference, tmp_path: Path, saves: tuple[int, ...]
) -> None:
    def trial(point: str, nth: int) -> str:
        folder = tmp_path / f"{point} {nth}"
        log = folder.with_suffix(".log")
        change = partial(die_at, point, nth, ELSEWHERE if nth % 2 == 0 else None)
        words = [*reference.words, f"run_dir={folder}", "resume=auto"]
        ended = run(words, log, change)
        if ended != -signal.SIGKILL:
            return f"{point} {nth}: status {ended}"
        return resumption(folder, reference.words, reference.end)

    assert os.stat(ELSEWHERE).st_dev != tmp_path.stat().st_dev
    trials = list(itertools.product(POINTS, saves))
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(trial, *zip(*trials, strict=True)))
    if len(saves) > 1:
        record("`kill -9` at named points of a save", found.count(""), len(trials))
    assert [wrong for wrong in found if wrong] == []


@pytest.mark.slow
def test_killed_by_the_shell(reference: Reference, tmp_path: Path) -> None:
    """The same through the command line: `python train.py ...`, killed, and again."""
    found = []
    for step in (2, 3, 4, 6, 8):
        folder = tmp_path / str(step)
        words = ["train.py", *reference.words, f"run_dir={folder}", "resume=auto"]
        process = subprocess.Popen(command(*words), env=environment(), stdout=subprocess.DEVNULL)
        wait_for(checkpoint(folder, step), process.poll)
        time.sleep(random.Random(step).uniform(0, 0.1))
        process.kill()
        if process.wait() == -signal.SIGKILL:  # else it had ended before
            found.append(resumption(folder, reference.words, reference.end))
    assert found
    record("the same through the command line", found.count(""), len(found))
    assert [wrong for wrong in found if wrong] == []
