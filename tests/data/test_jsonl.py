"""JSON lines, plain and compressed: the strings of a field, and lines that are named."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mla_lm.data.corpora import open_corpus
from tests.data.conftest import corpus_config, refusal, some_text, texts_of
from tests.data.text_files import LONG, jsonl, written


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


def test_a_gzip_without_a_byte_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl.gz").touch()
    assert "truncated or damaged gzip" in refusal(corpus_config("jsonl", path=tmp_path))


def test_gzip_of_several_members_is_one_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(b"".join(gzip.compress(b'{"text": "%d"}\n' % i) for i in range(3)))
    assert texts_of(jsonl(path)) == ["0", "1", "2"]


def test_size_of_a_compressed_file_is_that_of_its_text(tmp_path: Path) -> None:
    lines = json.dumps({"text": "a" * LONG}).encode()
    path = written(tmp_path / "rows.jsonl.gz", lines)
    assert path.stat().st_size < LONG
    assert open_corpus(jsonl(path)).n_bytes == len(lines)
