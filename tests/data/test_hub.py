"""Data sets in the layout of the Hugging Face hub: splits, subsets, and what they lack."""

import gc
import json
from pathlib import Path
from typing import Any

import pytest

from mla_lm import load_config
from mla_lm.config import DataConfig
from mla_lm.data.corpora import open_corpus
from mla_lm.errors import UserError
from tests.data.conftest import corpus_config, keys_of, refusal, texts_of
from tests.data.tables import table
from tests.processes import run

pytestmark = pytest.mark.usefixtures("offline")
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


def hub(name: Path | str, **keys: Any) -> DataConfig:
    return corpus_config("hub", name=name, **keys)


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
