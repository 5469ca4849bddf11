"""Preparations interrupted anywhere: what is gone on with, and what is begun afresh."""

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from mla_lm.config import DataConfig
from mla_lm.data import PreparedData, Tokenizer, encoder, prepare
from mla_lm.data.encoder import State
from mla_lm.errors import UserError
from tests.data.conftest import N_ROWS, updated
from tests.data.preparing import assert_as_undisturbed, unfinished


class Killed(BaseException):
    """Stands for a kill where a process of its own would take too long."""


@pytest.fixture
def half_done(cfg: DataConfig, often_saved: None, undisturbed: PreparedData) -> Path:
    """The folder of a preparation killed behind some documents."""
    interrupt(cfg, Tokenizer, "encode_batch", at=13)
    assert 0 < State.load(unfinished(cfg)).documents < N_ROWS
    return unfinished(cfg)


def interrupt(cfg: DataConfig, place: Any, name: str, *, at: int) -> None:
    """Prepare until `place.name` is called for the `at`-th time."""
    original, calls = getattr(place, name), 0

    def counted(*arguments: Any, **keys: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Killed
        return original(*arguments, **keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, counted)
        with pytest.raises(Killed):
            prepare(cfg)


PLACES: list[tuple[Any, str, int]] = [
    (Tokenizer, "encode_batch", 1),
    (Tokenizer, "encode_batch", 30),
    (State, "save", 1),
    (State, "save", 2),
    (State, "save", 5),
    (os, "replace", 1),
    (os, "replace", 3),
    (os, "fsync", 3),
    (os, "fsync", 8),
    (Path, "rename", 1),
    (import_module("mla_lm.data.prepare"), "read_head", 1),
    (import_module("mla_lm.data.prepare"), "write_manifest", 1),
]


@pytest.mark.parametrize(
    ("place", "name", "at"), PLACES, ids=[f"{name} {at}" for _, name, at in PLACES]
)
@pytest.mark.usefixtures("often_saved")
def test_wherever_it_is_interrupted_the_result_is_the_same(
    cfg: DataConfig, undisturbed: PreparedData, place: Any, name: str, at: int
) -> None:
    interrupt(cfg, place, name, at=at)
    assert not [p for p in Path(cfg.cache_dir).glob("*/manifest.json") if ".tmp" not in str(p)]
    prepare(cfg)
    assert_as_undisturbed(cfg, undisturbed)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("garbage", [b"\xff", b"\xff" * 100_001])
def test_garbage_behind_the_noted_position_is_cut_off(
    cfg: DataConfig, half_done: Path, undisturbed: PreparedData, split: str, garbage: bytes
) -> None:
    with (half_done / f"{split}-00000.bin").open("ab") as file:
        file.write(garbage)
    (half_done / f"{split}-00001.bin").write_bytes(garbage)
    prepare(cfg)
    assert_as_undisturbed(cfg, undisturbed)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("progress.json", Path.unlink),
        ("progress.json", truncated),
        ("progress.json", lambda path: path.write_text("")),
        ("progress.json", lambda path: path.write_text("[]")),
        ("progress.json", lambda path: path.write_text("{}")),
        ("progress.json", lambda path: path.write_text("null")),
        ("progress.json", lambda path: path.write_bytes(b"\xff")),
        ("tokenizer.json", Path.unlink),
        ("tokenizer.json", truncated),
        ("tokenizer.json", lambda path: path.write_text("{}")),
    ],
)
def test_without_a_good_note_it_starts_afresh(
    cfg: DataConfig,
    half_done: Path,
    undisturbed: PreparedData,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    name: str,
) -> None:
    damage(half_done / name)
    capsys.readouterr()
    prepare(cfg)
    assert "going on" not in capsys.readouterr().out
    assert_as_undisturbed(cfg, undisturbed)


def test_a_half_written_note_does_not_stay(
    cfg: DataConfig,
    half_done: Path,
    undisturbed: PreparedData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (half_done / "progress.json.new").write_text('{"thres')
    monkeypatch.setattr(encoder, "SAVED_EVERY", 10**9)
    prepare(cfg)
    assert_as_undisturbed(cfg, undisturbed)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_shard_shorter_than_noted_is_named(cfg: DataConfig, half_done: Path, split: str) -> None:
    path = half_done / f"{split}-00000.bin"
    os.truncate(path, 2)
    with pytest.raises(UserError) as caught:
        prepare(cfg)
    assert str(caught.value).startswith(f"{path}: ")
    assert f"delete {half_done}" in str(caught.value)


def test_another_text_under_the_same_name_size_and_time_is_noticed(
    cfg: DataConfig, half_done: Path, tmp_path: Path, many_rows: Path
) -> None:
    copy = tmp_path / many_rows.name
    copy.write_bytes(many_rows.read_bytes().replace(b"self", b"flse", 1))
    times = many_rows.stat()
    os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(UserError, match="changed since") as caught:
        prepare(updated(cfg, path=copy))
    assert str(caught.value).startswith(f"{copy}: ")
    assert f"{half_done}" in str(caught.value)
