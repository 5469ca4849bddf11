"""Documents in files: which there are, their exact text, their keys, and what is refused."""

import errno
import gzip
import json
import os
import re
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_lm.config import DataConfig
from mla_lm.data.corpora import files, open_corpus
from tests.data.conftest import (
    corpus_config,
    keys_of,
    refusal,
    some_text,
    texts_of,
    write_folder,
)

LONG = 20_000  # characters, several documents
TWELVE = [f"{index:02}.txt" for index in range(12)]
MULTIBYTE = "naïve 終わり 🙂\r\n"


def text(path: Path, **keys: Any) -> DataConfig:
    return corpus_config("text", path=path, **keys)


def jsonl(path: Path, **keys: Any) -> DataConfig:
    return corpus_config("jsonl", path=path, **keys)


def names(cfg: DataConfig) -> list[str]:
    return [key.decode() for key in keys_of(cfg)]


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


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


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"], ids=["empty", "only a BOM"])
def test_empty_file_is_an_empty_document(folder: Path, content: bytes) -> None:
    (folder / "05.txt").write_bytes(content)
    found = texts_of(text(folder))
    assert [name for name, t in zip(TWELVE, found, strict=True) if not t] == ["05.txt"]


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"], ids=["empty", "only a BOM"])
def test_empty_file_on_its_own_has_no_text(tmp_path: Path, content: bytes) -> None:
    assert "".join(texts_of(text(written(tmp_path / "bare.txt", content)))) == ""


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


def test_files_to_validate_on_are_documents_as_those_to_train_on(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_text("a line\n\n" * 3000)
    corpus = open_corpus(text(folder, val_path=folder / "03.txt"))
    assert corpus.val is not None
    assert (len(list(corpus.train())), len(list(corpus.val()))) == (11, 1)
    alone = open_corpus(text(folder / "00.txt", val_path=folder / "03.txt"))
    assert alone.val is not None
    assert (len(list(alone.train())), len(list(alone.val()))) == (6, 6)


def test_a_gzip_without_a_byte_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl.gz").touch()
    assert "truncated or damaged gzip" in refusal(corpus_config("jsonl", path=tmp_path))


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


def test_link_named_directly_is_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "to_file.txt").symlink_to(folder / "11.txt")
    (tmp_path / "to_folder").symlink_to(folder)
    assert "".join(texts_of(text(tmp_path / "to_file.txt"))) == (folder / "11.txt").read_text()
    assert names(text(tmp_path / "to_folder")) == TWELVE


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


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows"])
def test_jsonl_documents_are_the_strings_of_the_field(tmp_path: Path, name: str) -> None:
    rows = [{"id": 1, "body": "one\ntwo"}, {"body": "終わり", "text": 3}, {"body": "\u2028"}]
    content = "".join(json.dumps(r, ensure_ascii=i == 1) + "\n" for i, r in enumerate(rows))
    path = written(tmp_path / name, content.encode())
    assert texts_of(jsonl(path, field="body")) == ["one\ntwo", "終わり", "\u2028"]


def test_jsonl_folder_holds_plain_and_compressed_files(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for name in ("c.jsonl", "a.jsonl.gz", "inner/b.jsonl", "README.md", "x.json", "y.txt.gz"):
        written(tmp_path / name, json.dumps({"text": name}).encode())
    assert texts_of(jsonl(tmp_path)) == ["a.jsonl.gz", "c.jsonl", "inner/b.jsonl"]
    assert texts_of(jsonl(tmp_path / "*.jsonl.gz")) == ["a.jsonl.gz"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"text": "a"}\n\n  \t\n{"text": "b"}\n', ["a", "b"]),
        (b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}', ["a", "b"]),
        (b'{"text": "a"}\r\n\r\n{"text": "b"}\r\n', ["a", "b"]),
        (b'{"text": "\\u7d42 \\ud83d\\ude42 \\n\\u0000"}', ["終 🙂 \n\0"]),
        (b'{"text": null}\n{"text": ""}\n{"text": "b"}\n', ["", "", "b"]),
        (b' {"text" : "a", "text": "b"} \n', ["b"]),
        (b'{"text": "a", "score": NaN}\n', ["a"]),
        (b"", []),
        (b"\n\r\n", []),
        (b"\xef\xbb\xbf", []),
        (b"\xef\xbb\xbf\n", []),
    ],
    ids=[
        "blank lines",
        "BOM",
        "CRLF",
        "escapes",
        "null and empty",
        "field given twice",
        "NaN elsewhere",
        "empty file",
        "only blank lines",
        "only a BOM",
        "BOM and a blank line",
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_jsonl_lines(tmp_path: Path, suffix: str, content: bytes, expected: list[str]) -> None:
    path = written(tmp_path / f"rows.jsonl{suffix}", content)
    assert texts_of(jsonl(path)) == expected


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"body": "a", "title": "b"}', "'text' in ['body', 'title']"),
        (b"{}", "'text'"),
        (b'{"title\\nof": "a"}', "'text'"),
        (b'{"text": 3}', "'text' is no string"),
        (b'{"text": ["a"]}', "'text' is no string"),
        (b'["text"]', "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"text": "a"', "not JSON"),
        (b'{"text": "a"} {"text": "b"}', "not JSON"),
        (b'\xef\xbb\xbf{"text": "a"}', "not JSON"),
        (b'{"text": "\xff"}', "not JSON"),
        (b'{"text": "a\tb"}', "not JSON"),
        (b'{"text": "ab\\ud800"}', "surrogate pair at character 2"),
        (b"[" * 10**5, "not JSON"),
        (b'{"text": "a", "n": ' + b"7" * 5000 + b"}", "not JSON"),
    ],
    ids=[
        "missing field",
        "no fields",
        "line end in a field's name",
        "number",
        "list",
        "array",
        "string",
        "null",
        "cut off",
        "two objects",
        "BOM in the middle",
        "not UTF-8",
        "control character",
        "half a surrogate pair",
        "nested too deeply",
        "number too long",
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_bad_jsonl_line_is_named(tmp_path: Path, suffix: str, line: bytes, reason: str) -> None:
    content = b'{"text": "a"}\r\n\n{"text": "\xe2\x80\xa8"}\n' + line + b"\n[]\n"
    path = written(tmp_path / f"rows.jsonl{suffix}", content)
    said = refusal(jsonl(path))
    assert said.startswith(f"{path}: line 4: ")
    assert reason in said


def test_half_a_surrogate_pair_elsewhere_does_no_harm(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", b'{"text": "a", "title": "\\udfff"}\n')
    assert texts_of(jsonl(path)) == ["a"]


def truncated(packed: bytes) -> bytes:
    return packed[:-9]


def garbage(packed: bytes) -> bytes:
    return b"this is no gzip file"


def trailing_garbage(packed: bytes) -> bytes:
    return packed + b"garbage"


def damaged(packed: bytes) -> bytes:
    return packed[:30] + bytes([packed[30] ^ 0xFF]) + packed[31:]


def wrong_checksum(packed: bytes) -> bytes:
    return packed[:-8] + bytes(4) + packed[-4:]


@pytest.mark.parametrize(
    "break_it", [truncated, garbage, trailing_garbage, damaged, wrong_checksum]
)
def test_bad_gzip_is_named(tmp_path: Path, break_it: Callable[[bytes], bytes]) -> None:
    lines = "".join(json.dumps({"text": some_text(9, seed=seed)}) + "\n" for seed in range(40))
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(break_it(gzip.compress(lines.encode())))
    assert refusal(jsonl(path)).startswith(f"{path}: line ")


def test_gzip_of_several_members_is_one_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(b"".join(gzip.compress(b'{"text": "%d"}\n' % i) for i in range(3)))
    assert texts_of(jsonl(path)) == ["0", "1", "2"]


def test_size_of_a_compressed_file_is_that_of_its_text(tmp_path: Path) -> None:
    lines = json.dumps({"text": "a" * LONG}).encode()
    path = written(tmp_path / "rows.jsonl.gz", lines)
    assert path.stat().st_size < LONG
    assert open_corpus(jsonl(path)).n_bytes == len(lines)


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


def source(path: Path) -> dict[str, Any]:
    return open_corpus(text(path)).source


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


def as_it_is(path: Path) -> str:
    return str(path)


def relative(path: Path) -> str:
    return os.path.relpath(path)


def roundabout(path: Path) -> str:
    return f"{path.parent}/../{path.parent.name}/./{path.name}"


def linked(path: Path) -> str:
    link = path.parent.parent / "link.txt"
    link.symlink_to(path)
    return str(link)


def through_a_linked_folder(path: Path) -> str:
    link = path.parent.parent / "link"
    link.symlink_to(path.parent)
    return str(link / path.name)


@pytest.mark.parametrize(
    "spelled", [as_it_is, relative, roundabout, linked, through_a_linked_folder]
)
def test_files_to_validate_on_are_left_out_of_training(
    folder: Path, spelled: Callable[[Path], str]
) -> None:
    cfg = text(folder, val_path=spelled(folder / "05.txt"))
    corpus = open_corpus(cfg)
    assert names(cfg) == [name for name in TWELVE if name != "05.txt"]
    assert corpus.val is not None
    held_out = ["".join(document.parts) for document in corpus.val()]
    assert "".join(held_out) == (folder / "05.txt").read_text()
    assert corpus.n_bytes == open_corpus(text(folder)).n_bytes


def test_a_link_to_a_held_out_file_is_held_out(folder: Path, tmp_path: Path) -> None:
    (folder / "again.txt").symlink_to("05.txt")
    (tmp_path / "link").symlink_to(folder)
    for path in (folder, tmp_path / "link"):
        cfg = text(path, val_path=folder / "05.txt")
        assert names(cfg) == [name for name in TWELVE if name != "05.txt"]


def test_files_to_validate_on_may_be_a_glob_or_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    assert names(text(folder, val_path=folder / "0*.txt")) == TWELVE[10:]
    other = write_folder(tmp_path / "other", n_documents=2)
    assert names(text(folder, val_path=other)) == TWELVE


@pytest.mark.parametrize("val_path", ["", "*.txt"])
def test_holding_out_every_file_is_refused(folder: Path, val_path: str) -> None:
    assert "data.val_path" in refusal(text(folder, val_path=folder / val_path))


def test_missing_files_to_validate_on_are_named(folder: Path, tmp_path: Path) -> None:
    said = refusal(text(folder, val_path=tmp_path / "none"))
    assert f"data.val_path={tmp_path / 'none'}" in said


def test_source_tells_training_from_validation_files(folder: Path) -> None:
    sources = [open_corpus(text(folder, val_path=folder / name)).source for name in TWELVE[:2]]
    assert sources[0] != sources[1]
    assert sources[0] != source(folder)
