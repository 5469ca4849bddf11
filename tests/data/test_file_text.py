"""The exact text of files: no character is lost, and what is no text is named."""

import errno
import gzip
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_lm.data.corpora import files
from tests.data.conftest import corpus_config, refusal, some_text, texts_of
from tests.data.text_files import LONG, TWELVE, text, written

MULTIBYTE = "naïve 終わり 🙂\r\n"


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"], ids=["empty", "only a BOM"])
def test_empty_file_is_an_empty_document(folder: Path, content: bytes) -> None:
    (folder / "05.txt").write_bytes(content)
    found = texts_of(text(folder))
    assert [name for name, t in zip(TWELVE, found, strict=True) if not t] == ["05.txt"]


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"], ids=["empty", "only a BOM"])
def test_empty_file_on_its_own_has_no_text(tmp_path: Path, content: bytes) -> None:
    assert "".join(texts_of(text(written(tmp_path / "bare.txt", content)))) == ""


@pytest.mark.parametrize(
    "content",
    [
        "a line\r\n\r\nanother\r\n" * (LONG // 20),
        "no blank line here\n" * (LONG // 10),
        "form\x0cfeed\u2028separator\x85next\rreturn\n" * (LONG // 20),
        "終わり\n\n\n" * (LONG // 5) + "no newline at the end",
        "x" * 3 * LONG,
    ],
    ids=["CRLF", "no blank lines", "other line ends", "non-ASCII", "no line end"],
)
@pytest.mark.parametrize("block", [7, 2**20])
def test_single_file_is_cut_without_losing_a_character(
    tmp_path: Path, content: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BLOCK", block)
    found = texts_of(text(written(tmp_path / "book.txt", content.encode())))
    assert len(found) > 1
    assert all(found)
    assert "".join(found) == content


@pytest.mark.parametrize("pattern", ["", "*.txt"])
def test_a_folder_or_glob_of_one_file_is_cut_like_the_file(tmp_path: Path, pattern: str) -> None:
    path = written(tmp_path / "only.txt", some_text(LONG, seed=0).encode())
    assert texts_of(text(tmp_path / pattern)) == texts_of(text(path))


def test_single_file_is_cut_at_blank_lines_where_it_has_some(tmp_path: Path) -> None:
    path = written(tmp_path / "book.txt", b"verse\nverse\n \r\n" * (LONG // 10))
    *found, _ = texts_of(text(path))
    assert all(document.endswith("verse\n \r\n") for document in found)
    assert all(files.PIECE <= len(document) < files.PIECE + 20 for document in found)


@settings(max_examples=25)
@given(lines=st.lists(st.text(max_size=30), min_size=1, max_size=40), block=st.integers(1, 9))
def test_single_file_of_any_text(
    lines: list[str], block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = ("x" + "\n".join(lines) * 9).replace("\0", "")
    path = written(tmp_path_factory.mktemp("any") / "any.txt", content.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BLOCK", block)
        patch.setattr(files, "PIECE", 37)
        assert "".join(texts_of(text(path))) == content


@pytest.mark.parametrize("block", [1, 2, 7, 2**20])
def test_blocks_do_not_cut_characters(
    folder: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BLOCK", block)
    (folder / "07.txt").write_bytes(MULTIBYTE.encode() * 11)
    assert texts_of(text(folder))[7] == MULTIBYTE * 11


@pytest.mark.parametrize("block", [1, 7, 2**20])
def test_only_the_first_byte_order_mark_is_no_text(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BLOCK", block)
    path = written(tmp_path / "book.txt", b"\xef\xbb\xbfa line\n\xef\xbb\xbfanother\n")
    assert texts_of(text(path)) == ["a line\n\ufeffanother\n"]


@pytest.mark.parametrize("n_good", [0, 1, 5, 6, 7, 20, 29])
@pytest.mark.parametrize("block", [1, 2, 7, 2**20])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["no BOM", "BOM"])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"\xff", "not UTF-8"),
        (b"\xe7\xb5A", "not UTF-8"),
        (b"\xed\xa0\x80", "not UTF-8"),
        (b"\0", "NUL"),
    ],
    ids=["invalid byte", "broken character", "surrogate", "NUL"],
)
def test_bad_byte_is_named_with_its_position(
    tmp_path: Path,
    n_good: int,
    block: int,
    mark: bytes,
    bad: bytes,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files, "BLOCK", block)
    before = mark + "é".encode() * (n_good // 2) + b"e" * (n_good % 2)
    path = written(tmp_path / "bad.txt", before + bad + "é".encode() * 9)
    said = refusal(text(path))
    assert reason in said
    assert said.startswith(f"{path}: ")
    assert said.endswith(f"(byte {len(before)})")


@pytest.mark.parametrize("block", [1, 2, 7, 2**20])
@pytest.mark.parametrize("kept", [1, 2, 3])
@pytest.mark.parametrize("n_good", [0, 4, 13])
def test_character_cut_off_at_the_end_is_named_with_its_position(
    tmp_path: Path, block: int, kept: int, n_good: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BLOCK", block)
    path = written(tmp_path / "bad.txt", b"x" * n_good + "🙂".encode()[:kept])
    assert refusal(text(path)) == f"{path}: not UTF-8 text (byte {n_good})"


@pytest.mark.parametrize("content", [b"\xff\xfe no", b"\0"], ids=["not UTF-8", "NUL"])
def test_bad_file_among_good_ones_is_named(folder: Path, content: bytes) -> None:
    (folder / "bad.txt").write_bytes(content)
    assert str(folder / "bad.txt") in refusal(text(folder))


@pytest.mark.parametrize("kind", ["text", "jsonl", "jsonl.gz"])
def test_unreadable_file_is_named(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's refusal is put in by hand: permissions do not stop root."""
    for name in "abc":
        written(tmp_path / f"{name}.{kind}", b'{"text": "x"}\n')
    honest = Path.open, gzip.open

    def refuse(path: Path) -> None:
        if path.name.startswith("b."):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def open_path(path: Path, *args: Any, **kwargs: Any) -> Any:
        refuse(path)
        return honest[0](path, *args, **kwargs)

    def open_gzip(path: Path, *args: Any, **kwargs: Any) -> Any:
        refuse(path)
        return honest[1](path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_path)
    monkeypatch.setattr(gzip, "open", open_gzip)
    said = refusal(corpus_config(kind.removesuffix(".gz"), path=tmp_path))
    assert said == f"{tmp_path / f'b.{kind}'}: {os.strerror(errno.EACCES)}"
