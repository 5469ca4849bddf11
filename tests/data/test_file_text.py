"""The exact text of files: no character is lost, and what is not text is named."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_lm.config import DataConfig
from mla_lm.data.corpora import files
from tests.data.conftest import (
    TWELVE,
    corpus_config,
    keys_of,
    refusal,
    texts_of,
    written,
)

LONG = 20_000  # characters, several documents
MARK = b"\xef\xbb\xbf"


def text(path: Path, **keys: Any) -> DataConfig:
    return corpus_config("text", path=path, **keys)


@pytest.fixture(params=[7, 2**20])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read in blocks of so many characters."""
    monkeypatch.setattr(files, "BLOCK", request.param)


@pytest.mark.parametrize("content", [b"", MARK])
def test_an_empty_file_is_an_empty_document(folder: Path, content: bytes) -> None:
    (folder / "05.txt").write_bytes(content)
    found = texts_of(text(folder))
    assert [name for name, t in zip(TWELVE, found, strict=True) if not t] == ["05.txt"]
    assert "".join(texts_of(text(folder / "05.txt"))) == ""


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
@pytest.mark.usefixtures("block")
def test_single_file_is_cut_without_losing_a_character(folder: Path, content: str) -> None:
    path = written(folder / "book", content.encode())
    found = texts_of(text(path))
    assert len(found) > 1
    assert all(found)
    assert "".join(found) == content
    assert keys_of(text(path)) == [document.encode() for document in found]
    assert texts_of(text(folder / "b*k")) == found
    assert texts_of(text(folder))[-1] == content


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


@pytest.mark.usefixtures("block")
def test_only_the_first_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    path = written(tmp_path / "book.txt", MARK + b"a line\n" + MARK + b"another\n")
    assert texts_of(text(path)) == ["a line\n\ufeffanother\n"]


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("n_good", [0, 7, 20_001])
@pytest.mark.parametrize("mark", [b"", MARK], ids=["no BOM", "BOM"])
@pytest.mark.parametrize(
    "bad",
    [b"\xff", b"\xe7\xb5A", b"\xed\xa0\x80", "🙂".encode()[:1], "🙂".encode()[:3]],
    ids=["invalid byte", "broken character", "surrogate", "first byte", "three bytes"],
)
@pytest.mark.parametrize("after", [b"", b" and text" * 9999], ids=["at the end", "inside"])
def test_bad_byte_is_named_with_its_position(
    tmp_path: Path, n_good: int, mark: bytes, bad: bytes, after: bytes
) -> None:
    before = mark + "é".encode() * (n_good // 2) + b"e" * (n_good % 2)
    path = written(tmp_path / "bad.txt", before + bad + after)
    assert refusal(text(path)) == f"{path}: not UTF-8 text (byte {len(before)})"


@pytest.mark.parametrize("content", [b"\xff\xfe no", b"text\0"], ids=["not UTF-8", "NUL"])
def test_bad_file_among_good_ones_is_named(folder: Path, content: bytes) -> None:
    (folder / "bad.txt").write_bytes(content)
    assert refusal(text(folder)).startswith(f"{folder / 'bad.txt'}: not ")
