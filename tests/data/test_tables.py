"""Documents in tables: Parquet files, and data sets in the layout of the Hugging Face hub."""

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mla_lm import load_config
from mla_lm.config import DataConfig
from mla_lm.data.corpora import open_corpus
from mla_lm.errors import UserError
from tests.data.conftest import corpus_config, keys_of, refusal, texts_of
from tests.processes import run

TEXTS = ["one\ntwo", "終わり", "", "naïve\r\n", "one\ntwo"]
CARD = """---
configs:
- config_name: plain
  default: true
  data_files:
  - split: train
    path: plain/train-*.parquet
  - split: validation
    path: plain/held-out.parquet
- config_name: other
  data_files:
  - split: train
    path: other.parquet
---
"""
CARD_OF_LINES = """---
configs:
- config_name: rows
  data_files:
  - split: train
    path: rows/*.jsonl
  - split: test
    path: rows/more/test.jsonl
---
"""


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def parquet(path: Path, **keys: Any) -> DataConfig:
    return corpus_config("parquet", path=path, **keys)


def hub(name: Path | str, **keys: Any) -> DataConfig:
    return corpus_config("hub", name=name, **keys)


def table(path: Path, texts: Any, *, column: str = "text", rows: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"id": list(range(len(texts))), column: texts}
    pq.write_table(pa.table(columns), path, row_group_size=rows)
    return path


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


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Parquet files in two subsets, one of them with two splits."""
    root = tmp_path / "data set"
    table(root / "plain" / "train-0.parquet", [f"p{i}" for i in range(5)])
    table(root / "plain" / "train-1.parquet", ["終", None, "end"])
    table(root / "plain" / "held-out.parquet", ["v0", "v1"])
    table(root / "other.parquet", ["o0", "o1", "o2"], column="body")
    (root / "README.md").write_text(CARD)
    return root


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """JSON lines in one subset with two splits."""
    root = tmp_path / "lines"
    (root / "rows" / "more").mkdir(parents=True)
    for name, count in (("a", 3), ("more/test", 2)):
        records = [{"body": f"{name} {i}", "n": i} for i in range(count)]
        (root / "rows" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    (root / "README.md").write_text(CARD_OF_LINES)
    return root


def test_hub_streams_a_split(dataset: Path) -> None:
    assert texts_of(hub(dataset)) == ["p0", "p1", "p2", "p3", "p4", "終", "", "end"]
    assert texts_of(hub(dataset, split="validation")) == ["v0", "v1"]
    assert keys_of(hub(dataset))[5] == "終".encode()


def test_hub_takes_the_subset_and_the_column(dataset: Path) -> None:
    assert texts_of(hub(dataset, subset="other", column="body")) == ["o0", "o1", "o2"]
    assert texts_of(hub(dataset, subset="plain")) == texts_of(hub(dataset))


def test_hub_reads_json_lines(lines: Path) -> None:
    assert texts_of(hub(lines, subset="rows", column="body")) == ["a 0", "a 1", "a 2"]
    assert texts_of(hub(lines, column="body", split="test")) == ["more/test 0", "more/test 1"]


def test_hub_validates_on_a_split_of_its_own(dataset: Path) -> None:
    assert open_corpus(hub(dataset)).val is None
    corpus = open_corpus(hub(dataset, val_split="validation"))
    assert corpus.val is not None
    assert [d.key for d in corpus.val()] == [b"v0", b"v1"]
    assert len(list(corpus.train())) == 8


def test_hub_corpus_can_be_read_again(dataset: Path) -> None:
    corpus = open_corpus(hub(dataset))
    assert [d.key for d in corpus.train()] == [d.key for d in corpus.train()]


@pytest.mark.parametrize(
    ("max_bytes", "n_documents"), [(1, 0), (2, 1), (3, 1), (10, 5), (12, 5), (13, 7), (16, 8)]
)
def test_hub_stops_before_the_text_is_too_long(
    dataset: Path, max_bytes: int, n_documents: int
) -> None:
    corpus = open_corpus(hub(dataset, max_bytes=max_bytes))
    assert len(list(corpus.train())) == n_documents
    assert corpus.n_bytes == max_bytes


@pytest.mark.parametrize("name", ["~/data set", "data set", "./data set"])
def test_hub_folder_may_be_below_home_or_here(
    dataset: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(dataset.parent))
    monkeypatch.chdir(dataset.parent)
    assert len(texts_of(hub(name))) == 8


def test_hub_folder_is_told_apart_by_its_files(dataset: Path) -> None:
    before = open_corpus(hub(dataset)).source
    table(dataset / "plain" / "train-2.parquet", ["more"])
    assert open_corpus(hub(dataset)).source != before


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"split": "dev"}, "dev"),
        ({"subset": "none"}, "none"),
        ({"column": "body"}, "'body' among id, text"),
        ({"column": "id"}, "'id' is no string"),
        ({"subset": "other"}, "'text' among id, body"),
    ],
    ids=["split", "subset", "column", "integers", "column of a subset"],
)
def test_what_a_hub_folder_lacks_is_named(dataset: Path, keys: dict[str, str], reason: str) -> None:
    said = refusal(hub(dataset, **keys))
    assert said.startswith(f"{dataset} ")
    assert reason in said


@pytest.mark.parametrize(
    ("column", "reason"), [("text", "'text' among body, n"), ("n", "'n' is no string")]
)
def test_what_json_lines_lack_is_named(lines: Path, column: str, reason: str) -> None:
    said = refusal(hub(lines, column=column))
    assert said.startswith(f"{lines} ")
    assert reason in said


def test_missing_split_to_validate_on_is_named(dataset: Path) -> None:
    corpus = open_corpus(hub(dataset, val_split="dev"))
    assert corpus.val is not None
    with pytest.raises(ValueError, match=r"^[^\n]*dev[^\n]*$"):
        list(corpus.val())


def test_damaged_file_in_a_hub_folder_is_named(dataset: Path) -> None:
    (dataset / "plain" / "train-1.parquet").write_text("no table")
    assert str(dataset) in refusal(hub(dataset))


@pytest.mark.parametrize("line", ["broken", '{"body": "\\ud800"}'], ids=["broken", "surrogate"])
def test_bad_line_in_a_hub_folder_is_named(lines: Path, line: str) -> None:
    with (lines / "rows" / "a.jsonl").open("a") as file:
        file.write(f"\n{line}\n")
    assert str(lines) in refusal(hub(lines, column="body"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_column_that_csv_files_lack_is_named(tmp_path: Path) -> None:
    """Their columns are known only when a row is read; `datasets` leaves the file open."""
    (tmp_path / "train.csv").write_text("body,n\nsome text,1\nmore text,2\n")
    assert texts_of(hub(tmp_path, column="body")) == ["some text", "more text"]
    assert "no column 'text' in ['body', 'n']" in refusal(hub(tmp_path))
    gc.collect()


def test_the_split_to_train_on_is_not_validated_on() -> None:
    with pytest.raises(UserError, match=r"data\.val_split=train: must not be"):
        load_config(["data=hub", "data.name=owner/set", "data.val_split=train"])


def test_hub_folder_without_data_is_named(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    assert str(tmp_path / "bare") in refusal(hub(tmp_path / "bare"))


def test_hub_out_of_reach_says_what_else_to_do(tmp_path: Path) -> None:
    words = ["model=nano", "data=tinystories", "trainer.accelerator=cpu"]
    ended = run("train.py", *words, cwd=tmp_path, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    for word in ("roneneldan/TinyStories", "data=stdlib", "data.path", "data.name"):
        assert word in line
