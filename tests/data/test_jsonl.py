"""JSON lines, plain and compressed: the strings of a field, and lines that are named."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mla_lm.config import DataConfig
from mla_lm.data.corpora import open_corpus
from tests.data.conftest import corpus_config, keys_of, refusal, some_text, texts_of, written

each_suffix = pytest.mark.parametrize("suffix", ["", ".gz"])


def jsonl(path: Path, **keys: Any) -> DataConfig:
    return corpus_config("jsonl", path=path, **keys)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows"])
def test_documents_are_the_strings_of_the_field_and_their_own_keys(
    tmp_path: Path, name: str
) -> None:
    rows = [{"id": 1, "body": "one\ntwo"}, {"body": "終わり", "text": 3}, {"body": "\u2028"}]
    content = "".join(json.dumps(r, ensure_ascii=i == 1) + "\n" for i, r in enumerate(rows))
    cfg = jsonl(written(tmp_path / name, content.encode()), field="body")
    assert texts_of(cfg) == ["one\ntwo", "終わり", "\u2028"]
    assert keys_of(cfg) == [t.encode() for t in texts_of(cfg)]
    assert open_corpus(cfg).n_bytes == (None if name.endswith(".gz") else len(content.encode()))


def test_folder_holds_plain_and_compressed_files(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for name in ("c.jsonl", "a.jsonl.gz", "inner/b.jsonl", "README.md", "x.json", "y.txt.gz"):
        written(tmp_path / name, json.dumps({"text": name}).encode())
    assert texts_of(jsonl(tmp_path)) == ["a.jsonl.gz", "c.jsonl", "inner/b.jsonl"]
    assert texts_of(jsonl(tmp_path / "*.jsonl.gz")) == ["a.jsonl.gz"]


LINES = {
    "blank lines": (b'{"text": "a"}\n\n  \t\n{"text": "b"}\n', ["a", "b"]),
    "BOM": (b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}', ["a", "b"]),
    "CRLF": (b'{"text": "a"}\r\n\r\n{"text": "b"}\r\n', ["a", "b"]),
    "escapes": (b'{"text": "\\u7d42 \\ud83d\\ude42 \\n\\u0000"}', ["終 🙂 \n\0"]),
    "null and empty": (b'{"text": null}\n{"text": ""}\n{"text": "b"}\n', ["", "", "b"]),
    "NaN elsewhere": (b'{"text": "a", "score": NaN}\n', ["a"]),
    "half a surrogate pair elsewhere": (b'{"text": "a", "title": "\\udfff"}\n', ["a"]),
    "empty file": (b"", []),
    "BOM and a blank line": (b"\xef\xbb\xbf\n", []),
}


@each_suffix
@pytest.mark.parametrize(("content", "expected"), LINES.values(), ids=LINES)
def test_lines(tmp_path: Path, suffix: str, content: bytes, expected: list[str]) -> None:
    assert texts_of(jsonl(written(tmp_path / f"rows.jsonl{suffix}", content))) == expected


BAD = {
    "missing field": (b'{"body": "a", "title": "b"}', "no 'text' in ['body', 'title']"),
    "number": (b'{"text": 0}', "'text' is not a string"),
    "list": (b'{"text": []}', "'text' is not a string"),
    "array": (b'["text"]', "not a JSON object"),
    "cut off": (b'{"text": "a"', "not JSON"),
    "two objects": (b'{"text": "a"} {"text": "b"}', "not JSON"),
    "BOM in the middle": (b'\xef\xbb\xbf{"text": "a"}', "not JSON"),
    "not UTF-8": (b'{"text": "\xff"}', "not JSON"),
    "half a surrogate pair": (b'{"text": "ab\\ud800"}', "surrogate pair at character 2"),
    "nested too deeply": (b"[" * 10**5, "not JSON"),
    "number too long": (b'{"text": "a", "n": ' + b"7" * 5000 + b"}", "not JSON"),
}


@each_suffix
@pytest.mark.parametrize(("line", "reason"), BAD.values(), ids=BAD)
def test_bad_line_is_named(tmp_path: Path, suffix: str, line: bytes, reason: str) -> None:
    content = b'{"text": "a"}\r\n\n{"text": "\xe2\x80\xa8"}\n' + line + b"\n[]\n"
    path = written(tmp_path / f"rows.jsonl{suffix}", content)
    said = refusal(jsonl(path))
    assert said.startswith(f"{path}: line 4: ")
    assert reason in said


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda packed: packed[:-9],
    "not gzip": lambda packed: b"this is no gzip file",
    "trailing garbage": lambda packed: packed + b"garbage",
    "flipped bits": lambda packed: packed[:30] + bytes([packed[30] ^ 0xFF]) + packed[31:],
    "wrong checksum": lambda packed: packed[:-8] + bytes(4) + packed[-4:],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_gzip_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    lines = "".join(json.dumps({"text": some_text(9, seed=seed)}) + "\n" for seed in range(40))
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(damage(gzip.compress(lines.encode())))
    assert refusal(jsonl(path)).startswith(f"{path}: line ")


def test_gzip_of_several_members_is_one_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(b"".join(gzip.compress(b'{"text": "%d"}\n' % i) for i in range(3)))
    assert texts_of(jsonl(path)) == ["0", "1", "2"]
