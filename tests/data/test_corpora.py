"""Which documents a corpus has, which are held out, and what is said about bad input."""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_lm.config import DataConfig
from mla_lm.data.corpora import documents, scan
from mla_lm.errors import UserError
from tests.data.conftest import some_text, write_folder

MakeConfig = Callable[..., DataConfig]
LONG = 20_000  # characters, several documents


def names(cfg: DataConfig) -> list[str]:
    return [document.name for document in documents(cfg)]


def test_stdlib_is_the_library_without_its_tests(data_config: MakeConfig) -> None:
    found = names(data_config(None))
    assert len(found) > 200
    assert {"argparse.py", "json/decoder.py"} <= set(found)
    assert len(set(found)) == len(found)
    inside = [n for n in found if re.search(r"(^|/)(tests?|idle_test|site-packages)/", n)]
    assert inside == []


def test_split_depends_on_names_only(data_config: MakeConfig, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for place, seed in ((one, 0), (other, 100)):
        place.mkdir()
        for index in range(40):
            (place / f"{index}.py").write_text(some_text(20, seed=seed + index))
    first, second = scan(data_config(one)), scan(data_config(other))
    assert first.validation == second.validation
    assert first.digest != second.digest


def test_split_keeps_a_held_out_document_when_others_come(
    data_config: MakeConfig, folder: Path
) -> None:
    before = scan(data_config(folder, val_fraction=0.5)).validation
    assert before
    for index in range(30):
        (folder / f"new_{index}.txt").write_text("more")
    assert before <= scan(data_config(folder, val_fraction=0.5)).validation


@pytest.mark.parametrize("val_fraction", [1e-9, 0.2, 0.6])
def test_both_splits_hold_documents(
    data_config: MakeConfig, folder: Path, val_fraction: float
) -> None:
    cfg = data_config(folder, val_fraction=val_fraction)
    validation = scan(cfg).validation
    assert validation
    assert validation < set(names(cfg))


def test_larger_fraction_holds_out_more(data_config: MakeConfig, folder: Path) -> None:
    few = scan(data_config(folder, val_fraction=0.1)).validation
    many = scan(data_config(folder, val_fraction=0.7)).validation
    assert few < many


def test_digest_sees_text_and_names(data_config: MakeConfig, folder: Path) -> None:
    digests = {scan(data_config(folder)).digest}
    (folder / "00.txt").write_text("changed")
    digests.add(scan(data_config(folder)).digest)
    (folder / "00.txt").rename(folder / "renamed.txt")
    digests.add(scan(data_config(folder)).digest)
    assert len(digests) == 3


def test_folder_is_read_recursively_without_hidden_and_empty_files(
    data_config: MakeConfig, folder: Path
) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "deep.txt").write_text("deep")
    (folder / "empty.txt").write_text("")
    (folder / ".hidden").write_text("hidden")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("hidden too")
    assert names(data_config(folder)) == [*(f"{i:02}.txt" for i in range(12)), "inner/deep.txt"]


def test_glob_takes_the_matching_files(data_config: MakeConfig, folder: Path) -> None:
    (folder / "notes.md").write_text("not wanted")
    assert names(data_config(folder / "*.txt")) == [f"{i:02}.txt" for i in range(12)]


def test_glob_with_a_wildcard_folder(data_config: MakeConfig, tmp_path: Path) -> None:
    for author in ("ada", "bob"):
        write_folder(tmp_path / "authors" / author / "texts", n_documents=2)
    found = names(data_config(tmp_path / "authors" / "*" / "texts" / "*.txt"))
    assert len(set(found)) == 4
    assert all(str(tmp_path) not in name for name in found)


def test_file_whose_name_looks_like_a_glob(data_config: MakeConfig, tmp_path: Path) -> None:
    path = tmp_path / "draft [1].txt"
    path.write_text("a line\n\n" * 3000)
    assert "".join(d.text for d in documents(data_config(path))) == "a line\n\n" * 3000


@pytest.mark.parametrize(
    "text",
    [
        "a line\r\n\r\nanother\r\n" * (LONG // 20),
        "no blank line here\n" * (LONG // 10),
        "form\x0cfeed\u2028separator\x85next\rreturn\n" * (LONG // 20),
        "終わり\n\n\n" * (LONG // 5) + "no newline at the end",
    ],
    ids=["CRLF", "no blank lines", "other line ends", "non-ASCII"],
)
def test_single_file_is_cut_without_losing_a_character(
    data_config: MakeConfig, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(text.encode())
    found = list(documents(data_config(path)))
    assert len(found) > 1
    assert len({d.name for d in found}) == len(found)
    assert all(d.text for d in found)
    assert "".join(d.text for d in found) == text


@settings(max_examples=15)
@given(lines=st.lists(st.text(max_size=30), min_size=1, max_size=40))
def test_single_file_of_any_text(
    lines: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = ("x" + "\n".join(lines) * (1 + LONG // (1 + len("\n".join(lines))))).replace("\0", "")
    path = tmp_path_factory.mktemp("any") / "any.txt"
    path.write_bytes(text.encode())
    cfg = DataConfig.model_construct(kind="text", path=str(path))
    assert "".join(d.text for d in documents(cfg)) == text


def test_byte_order_mark_is_no_text(data_config: MakeConfig, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"a line\n\n" * 3000)
    assert next(iter(documents(data_config(path)))).text.startswith("a line")


def missing(place: Path) -> Path:
    return place / "missing.txt"


def no_match(place: Path) -> Path:
    return write_folder(place / "text") / "*.json"


def no_files(place: Path) -> Path:
    (place / "bare" / "inner").mkdir(parents=True)
    return place / "bare"


def one_short_file(place: Path) -> Path:
    (place / "short.txt").write_text("one line\n")
    return place / "short.txt"


def folder_of_empty_files(place: Path) -> Path:
    (place / "empties").mkdir()
    for name in "abc":
        (place / "empties" / name).touch()
    return place / "empties"


@pytest.mark.parametrize(
    "make", [missing, no_match, no_files, one_short_file, folder_of_empty_files]
)
def test_bad_path_is_named(
    data_config: MakeConfig, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    path = make(tmp_path)
    assert str(path) in refusal(data_config(path))


@pytest.mark.parametrize(
    "content",
    [b"", b" \n\t\r\n ", b"\xef\xbb\xbf", b"fine\n\n\xff\xfe no", b"PK\x03\x04\0\0binary"],
    ids=["empty", "whitespace", "only a BOM", "not UTF-8", "NUL"],
)
def test_bad_file_is_named(data_config: MakeConfig, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    assert str(path) in refusal(data_config(path))


@pytest.mark.parametrize("content", [b"\xff\xfe no", b"\0"], ids=["not UTF-8", "NUL"])
def test_bad_file_among_good_ones_is_named(
    data_config: MakeConfig, folder: Path, content: bytes
) -> None:
    (folder / "bad.txt").write_bytes(content)
    assert str(folder / "bad.txt") in refusal(data_config(folder))


def test_unreadable_file_is_named(
    data_config: MakeConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's refusal is put in by hand: permissions do not stop root."""
    honest = Path.read_bytes

    def refuse_one(path: Path) -> bytes:
        if path.name == "03.txt":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return honest(path)

    monkeypatch.setattr(Path, "read_bytes", refuse_one)
    assert str(folder / "03.txt") in refusal(data_config(folder))


def refusal(cfg: DataConfig) -> str:
    with pytest.raises(UserError) as caught:
        scan(cfg)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("pattern", ["", "*.txt"])
@pytest.mark.parametrize("line", ["x" * 90_000, "a line of text\n" * 6_000], ids=["one", "many"])
def test_a_folder_or_glob_of_one_file_is_cut_like_the_file(
    data_config: MakeConfig, tmp_path: Path, pattern: str, line: str
) -> None:
    (tmp_path / "only.txt").write_text(line)
    found = list(documents(data_config(tmp_path / pattern)))
    assert len(found) > 3
    assert "".join(document.text for document in found) == line
