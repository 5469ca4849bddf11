"""What killed writers leave, and what an error of the file system names."""

import errno
from pathlib import Path

import pytest

from mla_lm.files import new_folder, replacing, write_text


def test_what_a_killed_writer_has_left_goes_when_the_same_is_written(tmp_path: Path) -> None:
    left = [tmp_path / name for name in (".a[1].json.abcd_123.tmp", "out.abcd_123.tmp")]
    others = [tmp_path / name for name in (".b.json.abcd_123.tmp", "out.old.tmp", "a[1].json.tmp")]
    for folder in (*left, *others):
        (folder / "part").mkdir(parents=True)
    write_text(tmp_path / "a[1].json", "{}")
    with new_folder(tmp_path / "out"):
        pass
    assert {*tmp_path.iterdir()} == {*others, tmp_path / "a[1].json", tmp_path / "out"}


def test_what_a_living_writer_holds_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with replacing(path) as first:
        first.write_text("first")
        write_text(path, "second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    with pytest.raises(OSError, match="No space left") as caught, replacing(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []
