"""Damaged, swapped and forged files are refused before the first step; nothing in them runs."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.checkpoint.record import newest, read
from mla_lm.errors import UserError
from tests.reliability.conftest import Reference
from tests.reliability.record import record
from tests.reliability.runs import STEPS, checkpoint, run, steps

PAGE = 4096
Damage = Callable[[bytearray, random.Random], bytes]


def flipped(content: bytearray, rng: random.Random) -> bytes:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def flipped_in_header(content: bytearray, rng: random.Random) -> bytes:
    content[rng.randrange(200)] ^= 1 << rng.randrange(8)
    return bytes(content)


def truncated(content: bytearray, rng: random.Random) -> bytes:
    return bytes(content[: rng.randrange(len(content))])


def zeroed(content: bytearray, rng: random.Random) -> bytes:
    while True:
        start = rng.randrange(len(content) // PAGE) * PAGE
        if any(content[start : start + PAGE]):
            break
    content[start : start + PAGE] = bytes(PAGE)
    return bytes(content)


KINDS: dict[str, tuple[Damage, int]] = {
    "bit flips": (flipped, 400),
    "bit flips in the header": (flipped_in_header, 100),
    "truncations": (truncated, 200),
    "zeroed pages": (zeroed, 50),
}


def refused(path: Path) -> bool:
    """In one line that names the file."""
    try:
        read(path)
    except UserError as error:
        return str(path) in str(error) and "\n" not in str(error)
    return False


def copy_of_run(reference: Reference, folder: Path) -> Path:
    return shutil.copytree(reference.folder, folder)


@pytest.fixture(scope="module")
def other(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of another run with the same configuration."""
    folder = tmp_path_factory.mktemp("other") / "run"
    words = [*reference.words, f"run_dir={folder}", "checkpoint.keep=9"]
    assert run(words, folder.with_suffix(".log")) == 0
    return folder


def swapped(reference: Reference, other: Path, folder: Path) -> Iterator[Path]:
    """Files of another run, under each name, and of another step of the same run."""
    own = copy_of_run(reference, folder)
    names = [checkpoint(own, step) for step in (2, 4, 6, 8, 10, 12)]
    for source in sorted((other / "checkpoints").iterdir())[:3]:
        for name in names:
            yield Path(shutil.copy(source, name))
    for step, name in ((10, 12), (12, 10)):
        yield Path(shutil.copy(checkpoint(reference.folder, step), checkpoint(own, name)))


def test_every_damage_is_refused(reference: Reference, other: Path, tmp_path: Path) -> None:
    good = checkpoint(reference.folder, STEPS).read_bytes()
    path, rng = tmp_path / "step-000012.ckpt", random.Random(0)
    path.write_bytes(good)
    assert not refused(path)
    found: list[bool] = []
    for damage, trials in KINDS.values():
        for _ in range(trials):
            path.write_bytes(damage(bytearray(good), rng))
            found.append(refused(path))
    found += [refused(path) for path in swapped(reference, other, tmp_path / "own")]
    record("damaged checkpoints refused", sum(found), len(found))
    assert len(found) == 770
    assert all(found)


@pytest.mark.parametrize("damage", [flipped, truncated, zeroed])
def test_a_damaged_newest_file_is_named_and_the_one_before_taken(
    reference: Reference, tmp_path: Path, damage: Damage
) -> None:
    folder = copy_of_run(reference, tmp_path / "run")
    last, log = checkpoint(folder, STEPS), folder.with_suffix(".log")
    last.write_bytes(damage(bytearray(last.read_bytes()), random.Random(1)))
    assert run([*reference.words, f"run_dir={folder}", "resume=auto"], log) == 0
    said = log.read_text().splitlines()
    assert sum(str(last) in line and line.startswith("skipped ") for line in said) == 1
    assert steps(log) == [11, 12]
    assert newest(folder) == last


def test_without_a_good_file_nothing_is_begun_anew(reference: Reference, tmp_path: Path) -> None:
    folder = copy_of_run(reference, tmp_path / "run")
    for path in (folder / "checkpoints").iterdir():
        os.truncate(path, 1000)
    log = folder.with_suffix(".log")
    assert run([*reference.words, f"run_dir={folder}", "resume=auto"], log) == 2
    assert "holds no checkpoint that is good" in log.read_text()
    assert steps(log) == []


def test_later_files_that_are_damaged_are_put_aside(reference: Reference, tmp_path: Path) -> None:
    folder = copy_of_run(reference, tmp_path / "run")
    os.truncate(checkpoint(folder, STEPS), 1000)
    words = [*reference.words, f"run_dir={folder}", "resume=auto", "checkpoint.keep=2"]
    later = checkpoint(folder, 14)
    shutil.copy(checkpoint(folder, STEPS), later)
    assert run(words, folder.with_suffix(".log")) == 0
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "step-000010.ckpt",
        "step-000012.ckpt",
        "step-000012.damaged",
        "step-000014.damaged",
    ]


def test_a_file_is_the_same_whenever_it_is_written(reference: Reference, tmp_path: Path) -> None:
    source = checkpoint(reference.folder, STEPS)
    checkpoint_file.write(tmp_path / "again.ckpt", checkpoint_file.read(source))
    assert (tmp_path / "again.ckpt").read_bytes() == source.read_bytes()


def test_tools_can_open_a_checkpoint(reference: Reference) -> None:
    from safetensors import safe_open

    with safe_open(checkpoint(reference.folder, STEPS), "pt") as file:
        names = set(file.keys())
        about: dict[str, Any] = json.loads(file.metadata()["mla_lm"])
    assert "state_dict/model.embed.weight" in names
    assert about["content"]["global_step"] == STEPS
