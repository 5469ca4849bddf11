"""Preparations that cannot write: a full disk, a cache that is a file, no permission."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mla_lm.config import DataConfig
from mla_lm.data import PreparedData, prepare
from mla_lm.errors import UserError
from tests.data.conftest import config_of_rows
from tests.data.preparing import assert_as_undisturbed, finish, start, unfinished


@pytest.mark.parametrize(
    ("limit", "name"),
    [(2_000, "tokenizer.json"), (12_000, "train-00000.bin"), (40_000, "train-00000.bin")],
)
def test_a_full_disk_is_one_line_and_mended_by_space(
    cfg: DataConfig, undisturbed: PreparedData, limit: int, name: str
) -> None:
    status, _, err = finish(*start(cfg, limit=limit))
    assert status == 2
    assert err.startswith(f"error: {unfinished(cfg) / name}: ")
    assert err.endswith(f": {os.strerror(errno.EFBIG)}\n")
    assert err.count("\n") == 1
    assert not list(Path(cfg.cache_dir).glob("*/manifest.json"))
    prepare(cfg)
    assert_as_undisturbed(cfg, undisturbed)


@pytest.mark.usefixtures("often_saved")
def test_a_disk_that_fails_to_keep_what_was_written_is_named(
    cfg: DataConfig, undisturbed: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left on device") as caught:
            prepare(cfg)
    assert str(caught.value).startswith(str(unfinished(cfg)))
    prepare(cfg)
    assert_as_undisturbed(cfg, undisturbed)


def test_a_cache_that_is_a_file_is_named(many_rows: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.touch()
    for place in (cache, cache / "below"):
        with pytest.raises(UserError) as caught:
            prepare(config_of_rows(many_rows, place))
        assert str(caught.value).startswith(f"{cache}")
        assert "\n" not in str(caught.value)


def refuse(function: Callable[..., Any], inside: Path) -> Callable[..., Any]:
    """`function`, which may not make anything in a folder."""

    def guarded(path: Any, *arguments: Any, **keys: Any) -> Any:
        if Path(path).is_relative_to(inside) and not Path(path).exists():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return function(path, *arguments, **keys)

    return guarded


@pytest.mark.parametrize("exists", [False, True])
def test_a_cache_without_permission_to_write_is_named(
    cfg: DataConfig, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    cache = Path(cfg.cache_dir)
    if exists:
        cache.mkdir()
    for name in ("mkdir", "open"):
        monkeypatch.setattr(os, name, refuse(getattr(os, name), cache))
    with pytest.raises(UserError, match="Permission denied") as caught:
        prepare(cfg)
    assert str(caught.value).startswith(str(cache))
    assert "\n" not in str(caught.value)
