"""A checkpoint is whole and plain, or refused by name; nothing in it is executed."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mla_lm import load_config
from mla_lm.checkpoint import load_checkpoint, locate, newest
from mla_lm.errors import UserError
from mla_lm.resume import resolve_resume
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


class Planted:
    """Unpickles by making a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    "make", [text_file, empty_file, other_content, no_file, folder_without_checkpoint]
)
def test_what_is_no_checkpoint_is_refused(
    trained: Run, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "x.ckpt"
    make(path)
    assert str(path) in refusal(lambda: resolve(trained, f"resume={path}"))


def test_checkpoint_cannot_run_code(trained: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(pickle.dumps(Planted(tmp_path / "owned")))
    refusal(lambda: resolve(trained, f"resume={path}"))
    torch.save({"mla_lm": Planted(tmp_path / "owned")}, path)
    refusal(lambda: resolve(trained, f"resume={path}"))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "override",
    [
        "+callbacks.planted._target_=os.abort",
        "+logger.planted._target_=os.abort",
        "callbacks.samples._target_=os.abort",
        "+data@callbacks.planted=stdlib",
        "+balance@callbacks=none",
        "hydra.searchpath=[pkg://planted]",
        "experiment=../../planted",
        "model.dim=${oc.env:HOME}",
    ],
)
def test_checkpoint_chooses_nothing_but_local_files_and_values(
    trained: Run, tmp_path: Path, override: str
) -> None:
    path = tmp_path / "run" / "checkpoints" / "step-000012.ckpt"
    path.parent.mkdir(parents=True)
    stored = content(checkpoint(trained.folder, STEPS))
    stored["mla_lm"]["overrides"].append(override)
    torch.save(stored, path)
    words = [f"resume={path}"]
    cfg, overrides = resolve_resume(load_config(words), words)
    assert override not in overrides
    local = load_config([f"run_dir={cfg.run_dir}"])
    assert (cfg.callbacks, cfg.logger) == (local.callbacks, local.logger)


@pytest.mark.parametrize(
    ("key", "value"),
    [("tokenizer", "{}"), ("tokenizer", 3), ("data", None), ("config", {}), ("overrides", "x")],
)
def test_a_record_made_by_hand_is_refused_in_one_line(
    trained: Run, tmp_path: Path, key: str, value: Any
) -> None:
    path = tmp_path / "x.ckpt"
    stored = content(checkpoint(trained.folder, STEPS))
    stored["mla_lm"][key] = value
    torch.save(stored, path)
    with pytest.raises(UserError, match=str(path)) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_highest_step_is_newest_whatever_its_digits(trained: Run, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("step-999999.ckpt", "step-1000000.ckpt", "step-foo.ckpt"):
        shutil.copy(checkpoint(trained.folder, STEPS), folder / name)
    assert newest(tmp_path) == folder / "step-1000000.ckpt"


def test_locate_takes_files_and_folders(trained: Run) -> None:
    last = checkpoint(trained.folder, STEPS)
    assert locate(str(trained.folder)) == locate(str(last)) == last
