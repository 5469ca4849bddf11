"""Which file is the newest checkpoint, and what is none: refused by name, in one line."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.checkpoint.find import load_checkpoint, locate, newest, read
from mla_lm.files import open_regular
from tests.conftest import one_line
from tests.runs.conftest import STEPS, Run, checkpoint, content, resolve


@pytest.mark.parametrize("kind", ["text", "empty", "torch.save", "missing", "folder"])
def test_what_is_no_checkpoint_is_refused(trained: Run, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.ckpt"
    if kind in ("text", "empty"):
        path.write_text("no checkpoint" if kind == "text" else "")
    elif kind == "torch.save":
        torch.save({"state_dict": {}}, path)
    elif kind == "folder":
        path.mkdir()
    assert str(path) in one_line(lambda: resolve(trained, f"resume={path}"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("tokenizer", "{}"), ("tokenizer", 3), ("data", None), ("config", {}), ("command", [])],
)
def test_a_record_made_by_hand_is_refused(
    trained: Run, tmp_path: Path, key: str, value: Any
) -> None:
    path, stored = tmp_path / "x.ckpt", content(checkpoint(trained.folder, STEPS))
    stored["mla_lm"][key] = value
    checkpoint_file.write(path, stored)
    assert str(path) in one_line(lambda: load_checkpoint(path))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: t.to(torch.int8), "is torch.int8"),
        (lambda t: t.fill_(torch.nan), "not finite"),
        (lambda t: t[:-1], "not torch.float32"),
    ],
)
def test_weights_made_by_hand_are_refused(
    trained: Run, tmp_path: Path, edit: Callable[[Tensor], Tensor], said: str
) -> None:
    path, stored = tmp_path / "x.ckpt", content(checkpoint(trained.folder, STEPS))
    weights = stored["state_dict"]
    weights["model.norm.weight"] = edit(weights["model.norm.weight"])
    checkpoint_file.write(path, stored)
    line = one_line(lambda: load_checkpoint(path))
    assert "(norm.weight: " in line
    assert said in line


def test_sizes_are_compared_with_what_the_file_holds(trained: Run, tmp_path: Path) -> None:
    path, stored = tmp_path / "x.ckpt", content(checkpoint(trained.folder, STEPS))
    stored["mla_lm"]["config"]["model"] |= {"n_layers": 9_999, "dim": 2**20}
    checkpoint_file.write(path, stored)
    assert "bytes hold fewer" in one_line(lambda: load_checkpoint(path))


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_skipped(trained: Run, tmp_path: Path, kind: str) -> None:
    """Reading it would wait for a writer, or not end."""
    good = tmp_path / "checkpoints" / checkpoint(trained.folder, STEPS).name
    good.parent.mkdir()
    shutil.copy(checkpoint(trained.folder, STEPS), good)
    for path in (good.with_name("step-999999.ckpt"), tmp_path / "config.json"):
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/null")
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(path)
    assert newest(tmp_path) == good


def test_another_format_is_said_to_be_one(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = content(checkpoint(trained.folder, STEPS))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_file, "FORMAT", 1)
        checkpoint_file.write(tmp_path / "x.ckpt", stored)
    message = one_line(lambda: load_checkpoint(tmp_path / "x.ckpt"))
    assert "has format 1, this version reads 2" in message


def test_highest_step_is_newest_whatever_its_digits(trained: Run, tmp_path: Path) -> None:
    folder, stored = tmp_path / "checkpoints", content(checkpoint(trained.folder, STEPS))
    for step, name in ((999_999, "999999"), (1_000_000, "1000000"), (7_000_000, "foo")):
        checkpoint_file.write(folder / f"step-{name}.ckpt", {**stored, "global_step": step})
    assert newest(tmp_path) == locate(str(tmp_path)) == folder / "step-1000000.ckpt"


@pytest.mark.parametrize("damaged", ['{"run_id"', "[]", ""])
def test_a_damaged_config_file_does_not_cost_the_run(
    trained: Run, tmp_path: Path, damaged: str
) -> None:
    path = shutil.copy(checkpoint(trained.folder, STEPS), tmp_path / "mine.ckpt")
    (tmp_path / "config.json").write_text(damaged)
    assert read(locate(str(path)))[1]["global_step"] == STEPS
