"""Bundles of questions: four shapes, and what is wrong with a line."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from mla_lm.errors import UserError
from mla_lm.evaluation.items import Pair, all_pairs, read_items

CHOICE = {"query": "Q", "choices": ["a", "bc"], "gold": 1}
SCHEMA = {"context_options": ["one", "two"], "continuation": "end", "gold": 0}
LAST = {"context": "It was", "continuation": "late"}
BLIMP = {"sentence_good": "He is.", "sentence_bad": "He are.", "paradigm": "agreement"}
PAIRS = {
    "choice": (CHOICE, [("Q", " a"), ("Q", " bc")], 1),
    "schema": (SCHEMA, [("one", " end"), ("two", " end")], 0),
    "continuation": (LAST, [("It was", " late")], None),
    "minimal pair": (BLIMP, [("", "He is."), ("", "He are.")], 0),
}


def bundle(path: Path, *lines: object) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n")
    return path


@pytest.mark.parametrize(("values", "pairs", "gold"), PAIRS.values(), ids=PAIRS)
def test_each_shape_is_told_by_its_keys(
    values: dict[str, Any], pairs: list[Any], gold: int | None, tmp_path: Path
) -> None:
    (item,) = read_items(bundle(tmp_path / "x.jsonl", values | {"note": "left alone"}))
    assert item.pairs(" ") == [Pair(*pair) for pair in pairs]
    assert item.gold_answer == gold


def test_compressed_files_blank_lines_and_a_limit(tmp_path: Path) -> None:
    text = "\n".join([json.dumps(CHOICE), "", json.dumps(CHOICE | {"gold": 0}), "no item"])
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    assert [i.gold_answer for i in read_items(tmp_path / "x.jsonl.gz", limit=2)] == [1, 0]


def test_pairs_of_several_items_stay_in_order(tmp_path: Path) -> None:
    items = read_items(bundle(tmp_path / "x.jsonl", CHOICE, CHOICE | {"choices": ["a", "b", "c"]}))
    pairs, sizes = all_pairs(items, "")
    assert sizes == [2, 3]
    assert [pair.continuation for pair in pairs] == ["a", "bc", "a", "b", "c"]


BAD: dict[str, tuple[object, str]] = {
    "no JSON": ("{", "no item"),
    "no object": ("[1]", "no item"),
    "another shape": (LAST, "query: Field required"),
    "gold too large": (CHOICE | {"gold": 2}, "gold: must be one of the 2 answers"),
    "gold negative": (CHOICE | {"gold": -1}, "gold: must be one of the 2 answers"),
    "gold no number": (CHOICE | {"gold": "1"}, "gold: "),
    "one choice": (CHOICE | {"choices": ["a"]}, "choices: "),
    "empty choice": (CHOICE | {"choices": ["a", ""]}, "choices.1: "),
    "no Unicode": (CHOICE | {"query": "\ud800"}, "no item"),
    "nested deeply": ("[" * 100_000, "no item"),
    "query no text": (CHOICE | {"query": 3}, "query: "),
}


@pytest.mark.parametrize(("line", "said"), BAD.values(), ids=BAD)
def test_a_malformed_line_is_named(line: object, said: str, tmp_path: Path) -> None:
    path = bundle(tmp_path / "x.jsonl", CHOICE, line)
    with pytest.raises(UserError) as caught:
        read_items(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_unknown_shape_is_named(tmp_path: Path) -> None:
    path = bundle(tmp_path / "x.jsonl", {"question": "x"})
    with pytest.raises(UserError, match="its keys \\['question'\\] are those of no known shape"):
        read_items(path)


def test_files_without_items_are_named(tmp_path: Path) -> None:
    for content in (b"", b"\n\n"):
        (tmp_path / "x.jsonl").write_bytes(content)
        with pytest.raises(UserError, match="holds no items"):
            read_items(tmp_path / "x.jsonl")
    (tmp_path / "y.jsonl.gz").write_bytes(gzip.compress(b"x" * 999)[:-9])
    (tmp_path / "z.jsonl").write_bytes(b"\xff\xfe")
    flipped = bytearray(gzip.compress(b"abcdefgh" * 999))
    flipped[20] ^= 255
    (tmp_path / "w.jsonl.gz").write_bytes(flipped)
    for name in ("y.jsonl.gz", "z.jsonl", "w.jsonl.gz", "missing.jsonl"):
        with pytest.raises(UserError, match="cannot be read"):
            read_items(tmp_path / name)
