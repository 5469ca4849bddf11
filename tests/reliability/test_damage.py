"""Damaged and swapped files are refused before the first step, and the one before is taken."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mla_lm.checkpoint.find import newest, read
from mla_lm.errors import UserError
from tests.reliability.conftest import Reference
from tests.reliability.record import record
from tests.reliability.runs import STEPS, checkpoint, run, steps

PAGE = 4096
Damage = Callable[[bytearray, random.Random], object]


def flipped(content: bytearray, rng: random.Random) -> None:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def flipped_in_header(content: bytearray, rng: random.Random) -> None:
    content[rng.randrange(200)] ^= 1 << rng.randrange(8)


def truncated(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content)) :]


def zeroed(content: bytearray, rng: random.Random) -> None:
    while True:
        start = rng.randrange(len(content) // PAGE) * PAGE
        if any(content[start : start + PAGE]):
            break
    content[start : start + PAGE] = bytes(PAGE)


TRIALS = {flipped: 400, flipped_in_header: 100, truncated: 200, zeroed: 50}


def refused(path: Path) -> bool:
    """In one line that names the file."""
    try:
        read(path)
    except UserError as error:
        return str(path) in str(error) and "\n" not in str(error)
    return False


def swapped(reference: Reference, place: Path) -> Iterator[Path]:
    """Files of another run, under each name, and of another step of the same run."""
    own, other = shutil.copytree(reference.folder, place / "own"), place / "other"
    words = [*reference.words, f"run_dir={other}", "checkpoint.keep=9"]
    assert run(words, place / "other.log") == 0
    for source in sorted((other / "checkpoints").iterdir())[:3]:
        for step in (2, 4, 6, 8, 10, 12):
            yield Path(shutil.copy(source, checkpoint(own, step)))
    for step, name in ((10, 12), (12, 10)):
        yield Path(shutil.copy(checkpoint(reference.folder, step), checkpoint(own, name)))


def test_every_damage_is_refused(reference: Reference, tmp_path: Path) -> None:
    good, rng = checkpoint(reference.folder, STEPS).read_bytes(), random.Random(0)
    path = tmp_path / "step-000012.ckpt"
    path.write_bytes(good)
    assert not refused(path)
    found = []
    for damage, trials in TRIALS.items():
        for _ in range(trials):
            content = bytearray(good)
            damage(content, rng)
            path.write_bytes(content)
            found.append(refused(path))
    found += [refused(path) for path in swapped(reference, tmp_path)]
    record("damaged checkpoints refused", sum(found), len(found))
    assert all(found)
    assert len(found) == 770


@pytest.mark.parametrize("damage", [flipped, truncated])
def test_a_damaged_newest_file_is_named_and_the_one_before_taken(
    reference: Reference, tmp_path: Path, damage: Damage
) -> None:
    """A later one is put aside."""
    folder = shutil.copytree(reference.folder, tmp_path / "run")
    last, log = checkpoint(folder, STEPS), tmp_path / "log"
    content = bytearray(last.read_bytes())
    damage(content, random.Random(1))
    last.write_bytes(content)
    shutil.copy(last, checkpoint(folder, 14))
    assert run([*reference.words, f"run_dir={folder}", "resume=auto"], log) == 0
    skipped = [line for line in log.read_text().splitlines() if line.startswith("skipped ")]
    assert sum(str(last) in line for line in skipped) == 1
    assert steps(log) == [11, 12]
    assert newest(folder) == last
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "step-000010.ckpt",
        "step-000012.ckpt",
        "step-000012.damaged",
        "step-000014.damaged",
    ]


def test_without_a_good_file_no_new_run_starts(reference: Reference, tmp_path: Path) -> None:
    folder, log = shutil.copytree(reference.folder, tmp_path / "run"), tmp_path / "log"
    for path in (folder / "checkpoints").iterdir():
        os.truncate(path, 1000)
    assert run([*reference.words, f"run_dir={folder}", "resume=auto"], log) == 2
    assert "holds no checkpoint that is good" in log.read_text()
    assert steps(log) == []
