"""A checkpoint is whole and plain, or refused by name; nothing in it is executed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.checkpoint.record import load_checkpoint, locate, newest, read
from mla_lm.errors import UserError
from tests.runs.conftest import STEPS, Run, checkpoint, content, copied, refusal, resolve


def test_truncated_checkpoint_is_named_and_the_one_before_taken(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(trained.folder, tmp_path / "run")
    last = checkpoint(folder, STEPS)
    os.truncate(last, last.stat().st_size // 2)
    before = sorted((folder / "checkpoints").iterdir())[-2]
    assert resolve(trained, "resume=auto", f"run_dir={folder}").resume == str(before)
    named = [line for line in capsys.readouterr().err.splitlines() if str(last) in line]
    assert len(named) == 1


def text_file(path: Path) -> None:
    path.write_text("no checkpoint")


def empty_file(path: Path) -> None:
    path.touch()


def other_content(path: Path) -> None:
    torch.save({"state_dict": {}}, path)


def no_file(path: Path) -> None:
    pass


def folder_without_checkpoint(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    "make", [text_file, empty_file, other_content, no_file, folder_without_checkpoint]
)
def test_what_is_no_checkpoint_is_refused(
    trained: Run, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "x.ckpt"
    make(path)
    assert str(path) in refusal(lambda: resolve(trained, f"resume={path}"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("tokenizer", "{}"), ("tokenizer", 3), ("data", None), ("config", {}), ("command", [])],
)
def test_a_record_made_by_hand_is_refused_in_one_line(
    trained: Run, tmp_path: Path, key: str, value: Any
) -> None:
    path = tmp_path / "x.ckpt"
    stored = content(checkpoint(trained.folder, STEPS))
    stored["mla_lm"][key] = value
    checkpoint_file.write(path, stored)
    with pytest.raises(UserError, match=str(path)) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_highest_step_is_newest_whatever_its_digits(trained: Run, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step, name in ((999_999, "999999"), (1_000_000, "1000000"), (7_000_000, "foo")):
        stored = content(checkpoint(trained.folder, STEPS))
        checkpoint_file.write(folder / f"step-{name}.ckpt", {**stored, "global_step": step})
    assert newest(tmp_path) == folder / "step-1000000.ckpt"


def test_name_and_folder_must_agree_with_what_is_inside(trained: Run, tmp_path: Path) -> None:
    good = checkpoint(trained.folder, STEPS)
    renamed = Path(shutil.copy(good, tmp_path / "step-000010.ckpt"))
    assert "holds step 12, not 10" in refusal(lambda: read(renamed))
    assert read(Path(shutil.copy(good, tmp_path / "mine.ckpt")))[1]["global_step"] == STEPS
    (tmp_path / "config.json").write_text('{"run_id": "another"}')
    assert "the run here is another" in refusal(lambda: read(tmp_path / "mine.ckpt"))


@pytest.mark.parametrize("damage", ['{"run_id"', "[]", ""])
def test_a_damaged_config_file_does_not_cost_the_run(
    trained: Run, tmp_path: Path, damage: str
) -> None:
    folder = copied(trained.folder, tmp_path / "run")
    (folder / "config.json").write_text(damage)
    assert newest(folder) == checkpoint(folder, STEPS)


def test_locate_takes_files_and_folders(trained: Run) -> None:
    last = checkpoint(trained.folder, STEPS)
    assert locate(str(trained.folder)) == locate(str(last)) == last
