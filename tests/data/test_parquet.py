"""Documents in Parquet files: the strings of a column, and files that are none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mla_lm.config import DataConfig
from mla_lm.data.corpora import open_corpus
from tests.data.conftest import corpus_config, keys_of, refusal, texts_of
from tests.data.tables import table

pytestmark = pytest.mark.usefixtures("offline")
TEXTS = ["one\ntwo", "終わり", "", "naïve\r\n", "one\ntwo"]


def parquet(path: Path, **keys: Any) -> DataConfig:
    return corpus_config("parquet", path=path, **keys)


def strings(texts: list[str | None]) -> pa.Array:
    return pa.array(texts, pa.string())


def large_strings(texts: list[str | None]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def dictionary(texts: list[str | None]) -> pa.Array:
    return pa.array(texts, pa.string()).dictionary_encode()


each_type = pytest.mark.parametrize("column", [strings, large_strings, dictionary])


@each_type
@pytest.mark.parametrize("rows", [2, 100])
def test_parquet_documents_are_the_strings_of_the_column(
    tmp_path: Path, column: Callable[[list[str | None]], pa.Array], rows: int
) -> None:
    path = table(tmp_path / "a.parquet", column(TEXTS), column="body", rows=rows)
    assert pq.read_metadata(path).num_row_groups == (3 if rows == 2 else 1)
    assert texts_of(parquet(path, column="body")) == TEXTS
    assert keys_of(parquet(path, column="body")) == [text.encode() for text in TEXTS]


@each_type
def test_parquet_nulls_are_empty_documents(
    tmp_path: Path, column: Callable[[list[str | None]], pa.Array]
) -> None:
    path = table(tmp_path / "a.parquet", column([None, "a", None]))
    assert texts_of(parquet(path)) == ["", "a", ""]


def test_parquet_of_many_row_groups_keeps_its_order(tmp_path: Path) -> None:
    expected = [f"row {i}" for i in range(700)]
    path = table(tmp_path / "a.parquet", expected, rows=90)
    assert texts_of(parquet(path)) == expected


def test_parquet_without_rows_has_no_documents(tmp_path: Path) -> None:
    assert texts_of(parquet(table(tmp_path / "a.parquet", strings([])))) == []


@pytest.mark.parametrize(
    "name",
    ["draft [1].parquet", "a*b?.parquet", "50% # & naïve.parquet", "no_suffix"],
)
def test_parquet_file_of_any_name(tmp_path: Path, name: str) -> None:
    assert texts_of(parquet(table(tmp_path / name, TEXTS))) == TEXTS


def test_parquet_name_that_the_library_cannot_open_is_named(tmp_path: Path) -> None:
    path = table(tmp_path / "a::b.parquet", TEXTS)
    assert str(path) in refusal(parquet(path))


def test_parquet_file_in_a_hidden_folder(tmp_path: Path) -> None:
    assert texts_of(parquet(table(tmp_path / ".cache" / "a.parquet", TEXTS))) == TEXTS


def test_parquet_folder_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("c.parquet", "a.parquet", "b/a.parquet"):
        table(tmp_path / name, [name])
    (tmp_path / "README.md").write_text("no table")
    assert texts_of(parquet(tmp_path)) == ["a.parquet", "b/a.parquet", "c.parquet"]
    assert texts_of(parquet(tmp_path / "[bc].parquet")) == ["c.parquet"]


def test_parquet_files_may_have_other_columns(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", ["a"])
    pq.write_table(pa.table({"text": ["b"], "score": [0.5]}), tmp_path / "b.parquet")
    assert texts_of(parquet(tmp_path)) == ["a", "b"]


def test_parquet_files_to_validate_on_are_left_out_of_training(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        table(tmp_path / f"{name}.parquet", [name])
    corpus = open_corpus(parquet(tmp_path, val_path=tmp_path / "b.parquet"))
    assert [d.key for d in corpus.train()] == [b"a", b"c"]
    assert corpus.val is not None
    assert [d.key for d in corpus.val()] == [b"b"]


def test_parquet_size_is_known_beforehand(tmp_path: Path) -> None:
    sizes = []
    for n_characters in (3_000, 50_000):
        path = table(tmp_path / "a.parquet", ["".join(map(chr, range(256, 256 + n_characters)))])
        sizes.append(open_corpus(parquet(path)).n_bytes)
    assert 0 < sizes[0] < sizes[1]


def test_wrong_parquet_column_names_those_there(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", TEXTS, column="body")
    said = refusal(parquet(path))
    assert said.startswith(f"{path}: ")
    assert "'text' among id, body" in said


@pytest.mark.parametrize(
    "values", [[3, 1], [b"a", b"b"], [["a"], ["b"]]], ids=["integers", "bytes", "lists"]
)
def test_parquet_column_of_something_else_is_refused(tmp_path: Path, values: Any) -> None:
    path = table(tmp_path / "a.parquet", values)
    said = refusal(parquet(path))
    assert said.startswith(f"{path}: ")
    assert "'text' is no string" in said


def test_truncated_parquet_is_named(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", TEXTS)
    path.write_bytes(path.read_bytes()[:-20])
    assert refusal(parquet(path)).startswith(f"{path}: ")


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", TEXTS)
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 60 + content[64:])
    assert refusal(parquet(path)).startswith(f"{path}: ")


@pytest.mark.parametrize("content", ["", "this is text\n" * 100], ids=["empty", "text"])
def test_file_that_is_no_parquet_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.parquet"
    path.write_text(content)
    assert f"{path}: not a Parquet file" in refusal(parquet(path))
