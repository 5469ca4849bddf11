"""Which files a path names, their order and keys, what `val_path` holds out; their exact text."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mla_lm import files as package_files
from mla_lm.config import DataConfig
from mla_lm.data import prepare
from mla_lm.data.corpora import files, open_corpus
from tests.data.conftest import (
    TWELVE,
    corpus_config,
    keys_of,
    refusal,
    texts_of,
    tokenizer_keys,
    written,
)

MARK = b"\xef\xbb\xbf"


def text(path: Path | str, **keys: Any) -> DataConfig:
    return corpus_config("text", path=path, **keys)


def names(cfg: DataConfig) -> list[str]:
    return [os.fsdecode(key) for key in keys_of(cfg)]


def source(path: Path) -> dict[str, Any]:
    return open_corpus(text(path)).source


def test_stdlib_is_the_library_without_tests_and_tables() -> None:
    found = names(corpus_config("stdlib"))
    assert len(found) > 200
    assert {"argparse.py", "json/decoder.py"} <= set(found)
    assert found == sorted(set(found))
    left_out = r"(^|/)(tests?|idle_test|site-packages|encodings|pydoc_data)/"
    assert [n for n in found if re.search(left_out, n)] == []
    documents = open_corpus(corpus_config("stdlib")).train()
    (document,) = (d for d in documents if d.key == b"json/decoder.py")
    assert "".join(document.parts).encode() == Path(json.decoder.__file__).read_bytes()


INNER = ["inner/00.txt", "inner/01.txt"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("~/text", [*TWELVE, *INNER]),
        (".", [*TWELVE, *INNER]),
        ("../link", [*TWELVE, *INNER]),
        ("*.txt", TWELVE),
        ("../t*t/0[1-3].txt", ["text/01.txt", "text/02.txt", "text/03.txt"]),
        ("**/**/*.txt", [*TWELVE, *INNER]),
        ("~/text/i*/*", INNER),
        (".git", ["02.txt", "03.txt"]),
    ],
)
def test_a_path_is_a_folder_or_a_glob_and_each_file_counts_once(
    folder: Path, path: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(folder)
    for name in (*INNER, ".hidden", ".git/02.txt", ".git/03.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(name)
    (folder / "zz.txt").symlink_to(folder / "03.txt")
    (folder.parent / "link").symlink_to(folder)
    assert names(text(path)) == expected


def test_what_the_package_wrote_is_no_data_unless_it_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run and the cache of one command are not the text of the next."""
    monkeypatch.chdir(folder)
    with package_files.new_folder(folder / "exported") as exported:
        (exported / "README.md").write_text("a card")
    with package_files.claimed(folder / "runs" / "first", key="run_dir"):
        Path("runs/first/plots").mkdir()
        Path("runs/first/plots/samples.md").write_text("a sample")
    cfg = text(".", cache_dir="cache", tokenizer=tokenizer_keys("bytes"), val_fraction=0.2)
    assert [prepare(cfg).manifest["settings"]["source"]["files"] for _ in range(2)] == [12, 12]
    assert names(text("**/*")) == names(cfg) == TWELVE
    assert names(text("runs/first/plots")) == ["samples.md"]
    assert "what mla_lm wrote is left out" in refusal(text("*/*.md"))


def test_folders_linked_in_a_circle_are_read_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two links have 2^40 names before the system refuses one."""
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / f"{name}.txt").write_text(name)
        for other in ("one", "two"):
            (folder / name / f"to {other}").symlink_to(folder / other)
    visits, scandir = [], os.scandir

    def counted(path: Any) -> Any:
        visits.append(path)
        assert len(visits) < 99, "walks in circles"
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    read = [name.rsplit("/")[-1] for name in names(text(folder))]
    assert read == [*TWELVE, "one.txt", "two.txt"]
    assert len(names(text(folder / "**/*.txt"))) == 14


@pytest.mark.parametrize("name", ["draft [1].txt", "what?.txt", "a*b.txt", "a\\b.txt"])
def test_a_file_whose_name_looks_like_a_glob(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a line")
    assert texts_of(text(tmp_path / name)) == ["a line"]


def test_links_are_followed_and_files_that_cannot_be_read_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's refusal is put in by hand: permissions do not stop root."""
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "more.txt").write_text("more")
    (folder / "linked").symlink_to(elsewhere)
    assert names(text(folder)) == [*TWELVE, "linked/more.txt"]
    scandir = os.scandir

    def refuse_linked(path: Any) -> Any:
        if os.fspath(path).endswith("linked"):
            raise PermissionError(errno.EACCES, "refused", os.fspath(path))
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse_linked)
        with pytest.raises(PermissionError, match="linked"):
            open_corpus(text(folder))
    (folder / "dangling.txt").symlink_to("nothing")
    with pytest.raises(FileNotFoundError, match=r"dangling\.txt"):
        open_corpus(text(folder))


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
@pytest.mark.parametrize("path", ["missing.txt", "text/*.json", "bare", "~nobody_/x"])
def test_a_path_without_files_is_named(
    folder: Path, kind: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    Path("bare/inner").mkdir(parents=True)
    assert refusal(corpus_config(kind, path=path)).startswith(f"data.path={path}: ")
    if kind != "text":
        assert f"holds no files .{kind}" in refusal(corpus_config(kind, path=folder))
    for held_out in ("text", "text/*.txt", path):  # all, all, none
        said = refusal(text(folder, val_path=held_out))
        assert said.startswith(f"data.val_path={held_out}: ")


def test_keys_and_source_are_the_same_wherever_the_folder_lies(folder: Path) -> None:
    copy = shutil.copytree(folder, folder.parent / "elsewhere" / "copy")
    assert source(copy) == source(folder) == source(copy / "*.txt")
    assert source(folder)["files"] == 12
    (copy / "04.txt").write_text("changed")
    assert names(text(copy)) == names(text(folder)) == TWELVE
    os.rename(folder / "11.txt", os.fsencode(folder) + b"/\xff.txt")
    assert keys_of(text(folder))[-1] == b"\xff.txt"


def grow(path: Path) -> None:
    stat = path.stat()
    path.write_text(path.read_text() + "x")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


CHANGES: list[Callable[[Path], object]] = [
    grow,
    lambda path: os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000)),
    lambda path: path.rename(path.with_name("renamed.txt")),
    Path.unlink,
]


@pytest.mark.parametrize("change", CHANGES, ids=["grow", "touch", "rename", "delete"])
def test_source_changes_with_a_file(folder: Path, change: Callable[[Path], object]) -> None:
    before = source(folder)
    change(folder / "06.txt")
    assert source(folder)["listing"] != before["listing"]


@pytest.mark.parametrize("spelled", ["text/05.txt", "text/../text/05.txt", "file", "folder/05.txt"])
def test_files_to_validate_on_are_left_out_of_training(
    folder: Path, spelled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    Path("file").symlink_to(folder / "05.txt")
    Path("folder").symlink_to(folder)
    (folder / "again.txt").symlink_to("05.txt")
    corpus = open_corpus(text(folder, val_path=spelled))
    assert [d.key.decode() for d in corpus.train()] == [n for n in TWELVE if n != "05.txt"]
    assert corpus.val is not None
    held_out = "".join(part for document in corpus.val() for part in document.parts)
    assert held_out == (folder / "05.txt").read_text()
    assert open_corpus(text(folder, val_path="text/06.txt")).source != corpus.source


@pytest.fixture(params=[7, 2**20])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read in blocks of so many characters."""
    monkeypatch.setattr(files, "BLOCK", request.param)


@pytest.mark.usefixtures("block")
def test_an_empty_file_is_an_empty_document_and_a_byte_order_mark_no_text(folder: Path) -> None:
    (folder / "05.txt").write_bytes(b"")
    (folder / "06.txt").write_bytes(MARK)
    (folder / "07.txt").write_bytes(MARK + b"a line\n" + MARK + b"another\n")
    assert texts_of(text(folder))[5:8] == ["", "", "a line\n\ufeffanother\n"]


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("before", ["", "é" * 3, MARK.decode() + "é" * 10_000 + "e"])
@pytest.mark.parametrize(
    "bad",
    [b"\xff", b"\xe7\xb5A", b"\xed\xa0\x80", "🙂".encode()[:1], "🙂".encode()[:3]],
    ids=["invalid byte", "broken character", "surrogate", "first byte", "three bytes"],
)
@pytest.mark.parametrize("after", [b"", b" and text" * 9999], ids=["at the end", "inside"])
def test_a_bad_byte_is_named_with_its_position(
    tmp_path: Path, before: str, bad: bytes, after: bytes
) -> None:
    path = written(tmp_path / "bad.txt", before.encode() + bad + after)
    assert refusal(text(path)) == f"{path}: not UTF-8 text (byte {len(before.encode())})"


def test_a_file_with_a_nul_among_good_ones_is_named(folder: Path) -> None:
    path = written(folder / "bad.txt", b"text\0")
    assert refusal(text(folder)) == f"{path}: not text, it has a NUL character"


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet", "hub"])
@pytest.mark.parametrize("place", ["pipe", "zero"])
def test_what_is_no_regular_file_is_named_before_it_is_opened(
    tmp_path: Path, kind: str, place: str
) -> None:
    path = tmp_path / f"x.{kind}"
    os.mkfifo(path) if place == "pipe" else path.symlink_to("/dev/zero")
    for where in (tmp_path, path)[: 1 if kind == "hub" else 2]:
        cfg = corpus_config(kind, **{"name" if kind == "hub" else "path": where})
        assert refusal(cfg) == f"{path}: not a regular file"
