"""Which files a path names, their order and keys, and those held out by `val_path`."""

import errno
import json
import os
import re
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mla_lm.config import DataConfig
from mla_lm.data.corpora import open_corpus
from tests.data.conftest import TWELVE, corpus_config, keys_of, one_line, texts_of, write_folder

REFUSED = os.strerror(errno.EACCES)


def text(path: Path | str, **keys: Any) -> DataConfig:
    return corpus_config("text", path=path, **keys)


def names(cfg: DataConfig) -> list[str]:
    return [key.decode() for key in keys_of(cfg)]


def refusal(cfg: DataConfig) -> str:
    return one_line(lambda: open_corpus(cfg))


def source(path: Path) -> dict[str, Any]:
    return open_corpus(text(path)).source


def test_stdlib_is_the_library_without_tests_tables_and_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = names(corpus_config("stdlib"))
    assert len(found) > 200
    assert {"argparse.py", "json/decoder.py"} <= set(found)
    assert found == sorted(set(found))
    left_out = r"(^|/)(tests?|idle_test|site-packages|encodings|pydoc_data)/"
    assert [n for n in found if re.search(left_out, n)] == []
    corpus = open_corpus(corpus_config("stdlib"))
    (document,) = (d for d in corpus.train() if d.key == b"json/decoder.py")
    assert "".join(document.parts).encode() == Path(json.decoder.__file__).read_bytes()
    assert corpus.n_bytes == corpus.source["bytes"]
    (tmp_path / "link.py").symlink_to(json.decoder.__file__)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert str(tmp_path) in refusal(corpus_config("stdlib"))


def test_folder_is_read_recursively_without_hidden_files(folder: Path) -> None:
    write_folder(folder / "inner", n_documents=1)
    (folder / ".hidden").write_text("hidden")
    write_folder(folder / ".git", n_documents=1)
    assert names(text(folder)) == [*TWELVE, "inner/00.txt"]
    assert texts_of(text(folder / ".git")) == [(folder / ".git" / "00.txt").read_text()]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", TWELVE),
        ("0[1-3].txt", TWELVE[1:4]),
        ("**/*.txt", [*TWELVE, "inner/00.txt", "inner/01.txt"]),
        ("**/**/0[01].txt", [*TWELVE[:2], "inner/00.txt", "inner/01.txt"]),
        ("i*/*", ["inner/00.txt", "inner/01.txt"]),
    ],
)
def test_glob_takes_each_matching_file_once(
    folder: Path, pattern: str, expected: list[str]
) -> None:
    (folder / "notes.md").write_text("not wanted")
    write_folder(folder / "inner", n_documents=2)
    assert names(text(folder / pattern)) == expected


@pytest.mark.parametrize("name", ["draft [1].txt", "what?.txt", "a*b.txt", "a\\b.txt"])
def test_file_whose_name_looks_like_a_glob(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a line")
    assert texts_of(text(tmp_path / name)) == ["a line"]


@pytest.mark.parametrize("path", ["~/text", "~/text/*.txt", ".", "*.txt", "../text", "../t*t/*"])
def test_path_may_be_relative_or_below_home(
    folder: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(folder)
    assert [Path(name).name for name in names(text(path))] == TWELVE


@pytest.mark.parametrize("pattern", ["", "**/*.txt"])
@pytest.mark.parametrize("target", ["secrets/00.txt", "secrets", "nothing"])
def test_link_out_of_the_folder_or_to_nothing_is_refused(
    folder: Path, pattern: str, target: str
) -> None:
    write_folder(folder.parent / "secrets", n_documents=1)
    (folder / "zz.txt").symlink_to(folder.parent / target)
    if (pattern, target) != ("**/*.txt", "nothing"):  # which no glob finds
        assert refusal(text(folder / pattern)).startswith(f"{folder / 'zz.txt'}: links out of")


@pytest.mark.parametrize("pattern", ["", "*.txt"])
def test_a_file_is_read_once_whatever_links_to_it(folder: Path, pattern: str) -> None:
    (folder / "00_link.txt").symlink_to(folder / "03.txt")
    (folder / "here").symlink_to(folder)
    (folder.parent / "to_folder").symlink_to(folder)
    assert names(text(folder / pattern)) == TWELVE
    assert names(text(folder.parent / "to_folder" / pattern)) == TWELVE


def test_a_folder_that_cannot_be_read_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's refusal is put in by hand: permissions do not stop root."""
    (folder / "inner").mkdir()
    honest = os.scandir

    def refuse_inner(path: Any) -> Any:
        if os.fspath(path).endswith("inner"):
            raise PermissionError(errno.EACCES, REFUSED, os.fspath(path))
        return honest(path)

    monkeypatch.setattr(os, "scandir", refuse_inner)
    assert refusal(text(folder)) == f"{folder / 'inner'}: {REFUSED}"


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
@pytest.mark.parametrize("path", ["missing.txt", "x" * 300, "text/*.json", "bare", "~nobody_/x"])
def test_path_without_files_is_named(
    folder: Path, kind: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    Path("bare/inner").mkdir(parents=True)
    assert path in refusal(corpus_config(kind, path=path))
    if kind != "text":
        assert f"holds no files .{kind}" in refusal(corpus_config(kind, path=folder))


def test_keys_and_source_are_the_same_wherever_the_folder_lies(folder: Path) -> None:
    copy = shutil.copytree(folder, folder.parent / "elsewhere" / "copy")
    assert source(copy) == source(folder) == source(copy / "*.txt")
    assert source(folder)["files"] == 12
    assert source(folder)["bytes"] == sum(p.stat().st_size for p in folder.iterdir())
    (copy / "04.txt").write_text("changed")
    assert keys_of(text(copy)) == keys_of(text(folder)) == [name.encode() for name in TWELVE]
    os.rename(folder / "11.txt", os.fsencode(folder) + b"/\xff.txt")
    assert keys_of(text(folder))[-1] == b"\xff.txt"
    assert source(folder)["files"] == 12


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


def linked(path: Path) -> str:
    (path.parent.parent / "link.txt").symlink_to(path)
    return str(path.parent.parent / "link.txt")


def through_a_linked_folder(path: Path) -> str:
    (path.parent.parent / "link").symlink_to(path.parent)
    return str(path.parent.parent / "link" / path.name)


@pytest.mark.parametrize("spelled", [str, os.path.relpath, linked, through_a_linked_folder])
def test_files_to_validate_on_are_left_out_of_training(
    folder: Path, spelled: Callable[[Path], str]
) -> None:
    (folder / "again.txt").symlink_to("05.txt")
    cfg = text(folder, val_path=spelled(folder / "05.txt"))
    corpus = open_corpus(cfg)
    assert names(cfg) == [name for name in TWELVE if name != "05.txt"]
    assert corpus.val is not None
    held_out = ["".join(document.parts) for document in corpus.val()]
    assert held_out == [(folder / "05.txt").read_text()]
    assert corpus.n_bytes == source(folder)["bytes"]
    other = text(folder, val_path=folder / "06.txt")
    assert open_corpus(other).source != corpus.source


def test_files_to_validate_on_are_documents_as_those_to_train_on(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_text("a line\n\n" * 3000)
    counts = []
    for path in (folder, folder / "00.txt"):
        corpus = open_corpus(text(path, val_path=folder / "03.txt"))
        assert corpus.val is not None
        counts.append((len(list(corpus.train())), len(list(corpus.val()))))
    assert counts == [(11, 1), (6, 6)]


@pytest.mark.parametrize("val_path", ["text", "text/*.txt", "none"])
def test_bad_files_to_validate_on_are_named(
    folder: Path, val_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    assert refusal(text(folder, val_path=val_path)).startswith(f"data.val_path={val_path}: ")
    assert names(text(folder, val_path="text/0*.txt")) == TWELVE[10:]
