"""Keys of documents and the source they are from: the same wherever the files lie."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mla_lm.data.corpora import open_corpus
from tests.data.conftest import keys_of, some_text, texts_of, write_folder
from tests.data.text_files import LONG, TWELVE, jsonl, source, text, written


def test_key_of_a_row_is_its_text_wherever_it_stands(tmp_path: Path) -> None:
    rows = [some_text(1 + i % 5, seed=i % 7) for i in range(20)]
    for name, order in (("one", rows), ("other", rows[::-1])):
        lines = "".join(json.dumps({"n": i, "text": t}) + "\n" for i, t in enumerate(order))
        written(tmp_path / f"{name}.jsonl", lines.encode())
    one, other = (keys_of(jsonl(tmp_path / f"{name}.jsonl")) for name in ("one", "other"))
    assert one == other[::-1] == [t.encode() for t in rows]


def test_key_of_a_piece_of_a_single_file_is_its_text(tmp_path: Path) -> None:
    cfg = text(written(tmp_path / "book.txt", some_text(LONG, seed=0).encode()))
    assert keys_of(cfg) == [document.encode() for document in texts_of(cfg)]


def test_key_of_a_file_is_its_name_wherever_the_folder_lies(tmp_path: Path) -> None:
    one, other = write_folder(tmp_path / "one"), write_folder(tmp_path / "x" / "other")
    (other / "04.txt").write_text("changed")
    assert keys_of(text(one)) == keys_of(text(other)) == [name.encode() for name in TWELVE]
    assert keys_of(text(one / "*.txt")) == keys_of(text(one))


def test_name_that_is_no_text_is_a_key(folder: Path) -> None:
    os.rename(folder / "11.txt", os.fsencode(folder) + b"/\xff.txt")
    assert keys_of(text(folder))[-1] == b"\xff.txt"
    assert open_corpus(text(folder)).source["files"] == 12


def test_source_is_the_same_wherever_the_folder_lies(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "elsewhere" / "copy")
    assert source(copy) == source(folder) == source(copy / "*.txt")
    assert source(folder)["files"] == 12
    assert source(folder)["bytes"] == sum(p.stat().st_size for p in folder.iterdir())


def grow(path: Path) -> None:
    stat = path.stat()
    path.write_text(path.read_text() + "x")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def touch(path: Path) -> None:
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))


def rename(path: Path) -> None:
    path.rename(path.with_name("renamed.txt"))


@pytest.mark.parametrize("change", [grow, touch, rename, Path.unlink])
def test_source_changes_with_a_file(folder: Path, change: Callable[[Path], None]) -> None:
    before = source(folder)
    change(folder / "06.txt")
    assert source(folder)["listing"] != before["listing"]
