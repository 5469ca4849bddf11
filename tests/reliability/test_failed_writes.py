"""A save that fails leaves every earlier checkpoint as it was; what is saved comes back equal."""

import resource
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.checkpoint.find import newest, read
from mla_lm.errors import UserError
from tests.reliability.conftest import Reference
from tests.reliability.record import record
from tests.reliability.runs import checkpoint, differences, run, steps


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def write_within(size: int, path: Path, content: Any) -> str:
    """Write under a limit of the size of files; what the error says."""
    before, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit_files(size)
    try:
        checkpoint_file.write(path, content)
    except UserError as error:
        return str(error)
    finally:
        limit_files(before)
    return ""


def test_a_write_that_fails_keeps_what_was_there(reference: Reference, tmp_path: Path) -> None:
    folder = shutil.copytree(reference.folder, tmp_path / "run")
    files = sorted((folder / "checkpoints").iterdir())
    path, fresh = checkpoint(folder, 12), checkpoint(folder, 14)
    content, good = checkpoint_file.read(path), path.read_bytes()
    sizes = [int(size) for size in np.linspace(0, len(good) - 1, 50)]
    passed = 0
    for size in sizes:
        named = [str(p) in write_within(size, p, content) for p in (path, fresh)]
        kept = path.read_bytes() == good and newest(folder) == path
        passed += all(named) and kept and sorted((folder / "checkpoints").iterdir()) == files
    record("failed writes after which the previous checkpoint loads", passed, len(sizes))
    assert passed == len(sizes)


def test_a_run_that_cannot_save_says_so_and_ends(reference: Reference, tmp_path: Path) -> None:
    folder, log = shutil.copytree(reference.folder, tmp_path / "run"), tmp_path / "log"
    checkpoint(folder, 12).unlink()
    good = checkpoint(folder, 10).read_bytes()
    words = [*reference.words, f"run_dir={folder}", "resume=auto"]
    assert run(words, log, partial(limit_files, 500_000)) == 2
    (error,) = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert str(checkpoint(folder, 12)) in error
    assert "File too large" in error
    assert checkpoint(folder, 10).read_bytes() == good
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000010.ckpt"]


def fill_disk() -> None:
    shutil.disk_usage = lambda path: SimpleNamespace(free=10**6)  # type: ignore[assignment]


def test_too_little_space_is_known_before_the_first_step(
    reference: Reference, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    assert run([*reference.words, f"run_dir={tmp_path / 'run'}"], log, fill_disk) == 2
    assert "1 MB are free" in log.read_text()
    assert steps(log) == []


@pytest.mark.parametrize("value", [{1}, Path("x"), np.float32(1)], ids=["set", "path", "numpy"])
def test_what_is_not_plain_is_refused_by_its_place(tmp_path: Path, value: object) -> None:
    with pytest.raises(TypeError, match="callbacks/mine/0/x"):
        checkpoint_file.write(tmp_path / "x.ckpt", {"callbacks": {"mine": [{"x": value}]}})
    assert not any(tmp_path.iterdir())


VALUES: dict[str, Callable[[], Any]] = {
    "plain": lambda: {"a": None, "b": [True, -3, 1e-300, "naïve\n終"], "c": {}},
    "tuples": lambda: {"a": (1, (2, [3])), "b": ()},
    "keys": lambda: {"a": {0: "x", "0": "y", 1.5: "z", "$tensor": 1, "a/b.c": 2}},
    "places alike": lambda: {
        **{"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}},
        **{"c": {1: torch.zeros(2), "1": torch.ones(2)}},
    },
    "not finite": lambda: {"a": [float("inf"), float("-inf")]},
    "types": lambda: {
        str(d): torch.ones(2, dtype=d) for d in (torch.bfloat16, torch.bool, torch.uint8)
    },
    "shapes": lambda: {"a": torch.tensor(1.5), "b": torch.zeros(0, 3), "c": torch.zeros(0, 3)},
    "tied": lambda: dict.fromkeys(("embed", "head"), torch.randn(4, 3)),
    "views": lambda: {"a": list(torch.arange(12.0).view(3, 4).unbind()), "b": torch.eye(3)[:, 1]},
}


@pytest.mark.parametrize("make", VALUES.values(), ids=list(VALUES))
def test_every_tree_comes_back_equal(tmp_path: Path, make: Callable[[], Any]) -> None:
    value = make()
    path, again = tmp_path / "x.ckpt", tmp_path / "again.ckpt"
    checkpoint_file.write(path, value)
    content = checkpoint_file.read(path)
    assert differences(content, value) == []
    checkpoint_file.write(again, content)
    assert again.read_bytes() == path.read_bytes()
    if "embed" in content:
        assert content["embed"] is content["head"]


def test_tools_can_open_a_checkpoint_and_parts_be_read_alone(reference: Reference) -> None:
    from safetensors import safe_open

    path = checkpoint(reference.folder, 12)
    with safe_open(path, "pt") as file:
        assert "state_dict/model.embed.weight" in set(file.keys())
    assert set(read(path, "state_dict")[1]) == {"state_dict", "global_step", "mla_lm"}
