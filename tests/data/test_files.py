"""Which files a path names: folders, globs, links, the standard library, and none at all."""

import errno
import json
import os
import re
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mla_lm.data.corpora import open_corpus
from tests.data.conftest import corpus_config, refusal, texts_of, write_folder
from tests.data.text_files import TWELVE, names, text, written


def test_stdlib_is_the_library_without_its_tests() -> None:
    found = names(corpus_config("stdlib"))
    assert len(found) > 200
    assert {"argparse.py", "json/decoder.py"} <= set(found)
    assert found == sorted(set(found))
    left_out = r"(^|/)(tests?|idle_test|site-packages|encodings|pydoc_data)/"
    assert [n for n in found if re.search(left_out, n)] == []


def test_stdlib_is_read_as_it_stands() -> None:
    corpus = open_corpus(corpus_config("stdlib"))
    (document,) = (d for d in corpus.train() if d.key == b"json/decoder.py")
    assert "".join(document.parts).encode() == Path(json.decoder.__file__).read_bytes()
    assert corpus.val is None
    assert corpus.n_bytes == corpus.source["bytes"]


def test_stdlib_skips_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "library"
    library.mkdir()
    for path in (library / "inside.py", library / "other.py", tmp_path / "outside.py"):
        path.write_text("import this\n")
    (library / "out.py").symlink_to(tmp_path / "outside.py")
    (library / "within.py").symlink_to("inside.py")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(library))
    assert names(corpus_config("stdlib")) == ["inside.py", "other.py"]


def test_stdlib_without_sources_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert str(tmp_path) in refusal(corpus_config("stdlib"))


def test_folder_is_read_recursively_without_hidden_files(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "deep.txt").write_text("deep")
    (folder / ".hidden").write_text("hidden")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("hidden too")
    assert names(text(folder)) == [*TWELVE, "inner/deep.txt"]


def test_hidden_folder_named_directly_is_read(tmp_path: Path) -> None:
    place = write_folder(tmp_path / ".hidden", n_documents=3)
    assert names(text(place)) == TWELVE[:3]


def test_glob_takes_the_matching_files(folder: Path) -> None:
    (folder / "notes.md").write_text("not wanted")
    assert names(text(folder / "*.txt")) == TWELVE
    assert names(text(folder / "0[1-3].txt")) == TWELVE[1:4]


@pytest.mark.parametrize("pattern", ["*/texts/*.txt", "**/*.txt", "**/**/*.txt"])
def test_glob_takes_each_file_once(tmp_path: Path, pattern: str) -> None:
    for author in ("ada", "bob"):
        write_folder(tmp_path / "authors" / author / "texts", n_documents=2)
    found = names(text(tmp_path / "authors" / pattern))
    assert found == [f"{a}/texts/0{i}.txt" for a in ("ada", "bob") for i in range(2)]


@pytest.mark.parametrize("name", ["draft [1].txt", "what?.txt", "a*b.txt", "a\\b.txt"])
def test_file_whose_name_looks_like_a_glob(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, b"a line\n\n" * 3000)
    assert "".join(texts_of(text(path))) == "a line\n\n" * 3000


@pytest.mark.parametrize("path", ["~/text", "~/text/*.txt"])
def test_home_is_expanded(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "text", n_documents=3)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names(corpus_config("text", path=path)) == TWELVE[:3]


@pytest.mark.parametrize("path", [".", "*.txt", "./*.txt", "../text", "../t*t/*.txt"])
def test_relative_path(folder: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert [
        name.removeprefix("text/") for name in names(corpus_config("text", path=path))
    ] == TWELVE


@pytest.mark.parametrize("target", ["secret.txt", "secrets"])
@pytest.mark.parametrize("name", ["link.txt", "inner/link.txt"])
def test_link_out_of_the_folder_is_refused(
    folder: Path, tmp_path: Path, target: str, name: str
) -> None:
    written(tmp_path / "secret.txt", b"secret")
    write_folder(tmp_path / "secrets")
    (folder / "inner").mkdir()
    (folder / name).symlink_to(tmp_path / target)
    assert refusal(text(folder)).startswith(f"{folder / name}: ")


@pytest.mark.parametrize("pattern", ["", "**/*.txt", "*.txt"])
def test_a_file_is_read_once_whatever_links_to_it(folder: Path, pattern: str) -> None:
    expected = names(text(folder))
    (folder / "00_link.txt").symlink_to(folder / "03.txt")
    (folder / "here").symlink_to(folder)
    assert names(text(folder / pattern)) == expected


@pytest.mark.parametrize("pattern", ["*.txt", "**/*.txt", "i*/*.txt"])
def test_a_glob_does_not_follow_links_out_of_its_folder(folder: Path, pattern: str) -> None:
    (folder.parent / "outside").mkdir()
    (folder.parent / "outside" / "secret.txt").write_text("secret")
    (folder / "zz.txt").symlink_to(folder.parent / "outside" / "secret.txt")
    (folder / "inner").symlink_to(folder.parent / "outside")
    assert "links out of" in refusal(text(folder / pattern))


def test_a_link_whose_target_is_not_read_itself_is_read(folder: Path) -> None:
    (folder / ".hidden").write_text("hidden text")
    (folder / "link.txt").symlink_to(folder / ".hidden")
    assert texts_of(text(folder))[-1] == "hidden text"


def test_link_named_directly_is_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "to_file.txt").symlink_to(folder / "11.txt")
    (tmp_path / "to_folder").symlink_to(folder)
    assert "".join(texts_of(text(tmp_path / "to_file.txt"))) == (folder / "11.txt").read_text()
    assert names(text(tmp_path / "to_folder")) == TWELVE


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
def test_the_home_of_nobody_is_a_path_like_any_other(kind: str) -> None:
    assert "~nobody_of_this_name/x" in refusal(corpus_config(kind, path="~nobody_of_this_name/x"))


def test_unreadable_folder_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's refusal is put in by hand: permissions do not stop root."""
    (folder / "inner").mkdir()
    honest = os.scandir

    def refuse_inner(path: Any) -> Any:
        if os.fspath(path).endswith("inner"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
        return honest(path)

    monkeypatch.setattr(os, "scandir", refuse_inner)
    assert str(folder / "inner") in refusal(text(folder))


def missing(place: Path) -> Path:
    return place / "missing.txt"


def too_long(place: Path) -> Path:
    return place / ("x" * 300)


def no_match(place: Path) -> Path:
    return write_folder(place / "text") / "*.json"


def no_files(place: Path) -> Path:
    (place / "bare" / "inner").mkdir(parents=True)
    return place / "bare"


def broken_link(place: Path) -> Path:
    (place / "link").symlink_to(place / "nothing")
    return place / "link"


@pytest.mark.parametrize("make", [missing, too_long, no_match, no_files, broken_link])
@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
def test_path_without_files_is_named(
    tmp_path: Path, kind: str, make: Callable[[Path], Path]
) -> None:
    path = make(tmp_path)
    assert str(path) in refusal(corpus_config(kind, path=path))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_folder_without_files_of_the_kind_names_the_kind(folder: Path, kind: str) -> None:
    assert f".{kind}" in refusal(corpus_config(kind, path=folder))
