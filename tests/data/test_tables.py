"""Documents in Parquet files and in data sets laid out as on the Hugging Face hub."""

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mla_lm import load_config
from mla_lm.config import DataConfig
from mla_lm.data.corpora import open_corpus
from tests.data.conftest import corpus_config, keys_of, one_line, refusal, texts_of, write_table
from tests.processes import ROOT, run

pytestmark = pytest.mark.usefixtures("offline")
TEXTS = ["one\ntwo", "終わり", "", "naïve\r\n", "one\ntwo"]
PLAIN = ["p0", "p1", "p2", "p3", "p4", "終", "", "end"]
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


def parquet(path: Path, **keys: Any) -> DataConfig:
    return corpus_config("parquet", path=path, **keys)


def hub(name: Path | str, **keys: Any) -> DataConfig:
    return corpus_config("hub", name=name, **keys)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Parquet files in two subsets, one of them with two splits."""
    root = tmp_path / "data set"
    write_table(root / "plain" / "train-0.parquet", PLAIN[:5])
    write_table(root / "plain" / "train-1.parquet", ["終", None, "end"])
    write_table(root / "plain" / "held-out.parquet", ["v0", "v1"])
    write_table(root / "other.parquet", ["o0", "o1", "o2"], column="body")
    (root / "README.md").write_text(CARD)
    return root


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """A data set of JSON lines."""
    rows = [{"body": f"r{i}", "n": i} for i in range(3)]
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "lines"


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
@pytest.mark.parametrize("name", ["a.parquet", "no_suffix", "draft [1] a*b? 50% #ï.parquet"])
def test_parquet_documents_are_the_strings_of_the_column(
    tmp_path: Path, kind: str, name: str
) -> None:
    types: dict[str, Callable[[Any], Any]] = {
        "string": pa.array,
        "large_string": lambda texts: pa.array(texts, pa.large_string()),
        "dictionary": lambda texts: pa.array(texts).dictionary_encode(),
    }
    path = write_table(
        tmp_path / ".cache" / name, types[kind]([*TEXTS, None]), column="body", rows=2
    )
    cfg = parquet(path, column="body")
    assert texts_of(cfg) == [*TEXTS, ""]
    assert keys_of(cfg) == [text.encode() for text in [*TEXTS, ""]]


def test_parquet_folder_in_the_order_of_names_and_rows(tmp_path: Path) -> None:
    many = [f"row {i}" for i in range(700)]
    for name, texts in (("c", ["c"]), ("a", many), ("b/a", ["b"]), ("none", pa.array([], "str"))):
        write_table(tmp_path / f"{name}.parquet", texts, rows=90)
    pq.write_table(pa.table({"text": ["d"], "score": [0.5]}), tmp_path / "d.parquet")
    (tmp_path / "README.md").write_text("no table")
    assert texts_of(parquet(tmp_path)) == [*many, "b", "c", "d"]
    corpus = open_corpus(parquet(tmp_path, val_path=tmp_path / "[a-c].parquet"))
    assert [d.key for d in corpus.train()] == [b"b", b"d"]
    assert corpus.val is not None
    assert [d.key for d in corpus.val()] == [*(text.encode() for text in many), b"c"]


@pytest.mark.parametrize("values", [[3, 1], [b"a", b"b"], [["a"], ["b"]]], ids=str)
def test_parquet_column_that_is_missing_or_no_text_is_named(tmp_path: Path, values: Any) -> None:
    path = write_table(tmp_path / "a.parquet", values)
    assert refusal(parquet(path)) == f"{path}: row 1: 'text' is not a string"
    assert refusal(parquet(path, column="no")) == f"{path}: row 1: no 'no' in ['id', 'text']"


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-20],
        lambda content: content[:4] + b"\xff" * 60 + content[64:],
        lambda content: b"",
        lambda content: b"this is text\n" * 100,
    ],
    ids=["truncated", "damaged", "empty", "text"],
)
def test_damaged_parquet_is_named(dataset: Path, damage: Callable[[bytes], bytes]) -> None:
    path = dataset / "plain" / "train-1.parquet"
    path.write_bytes(damage(path.read_bytes()))
    assert refusal(parquet(path)).startswith(f"{path}: ")
    assert refusal(hub(dataset)).startswith(f"{dataset} train: ")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, PLAIN),
        ({"subset": "plain", "split": "validation"}, ["v0", "v1"]),
        ({"subset": "other", "column": "body"}, ["o0", "o1", "o2"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["~/data set", "data set"])
def test_hub_streams_a_split_of_a_subset(
    dataset: Path,
    name: str,
    keys: dict[str, str],
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(dataset.parent))
    monkeypatch.chdir(dataset.parent)
    corpus = open_corpus(hub(name, **keys))
    assert corpus.val is None
    for _ in range(2):
        assert [d.key.decode() for d in corpus.train()] == expected


def test_hub_validates_on_a_split_of_its_own(dataset: Path) -> None:
    corpus = open_corpus(hub(dataset, val_split="validation"))
    assert corpus.val is not None
    assert [d.key for d in corpus.val()] == [b"v0", b"v1"]
    assert len(list(corpus.train())) == 8
    val = open_corpus(hub(dataset, val_split="dev")).val
    assert val is not None
    assert "dev" in one_line(lambda: list(val()))
    said = one_line(lambda: load_config(["data=hub", "data.name=o/s", "data.val_split=train"]))
    assert said.startswith("data.val_split=train: must not be")


@pytest.mark.parametrize(
    ("max_bytes", "n_documents"), [(1, 0), (2, 1), (3, 1), (10, 5), (12, 5), (13, 7), (16, 8)]
)
def test_hub_stops_before_the_text_is_too_long(
    dataset: Path, max_bytes: int, n_documents: int
) -> None:
    corpus = open_corpus(hub(dataset, max_bytes=max_bytes))
    assert len(list(corpus.train())) == n_documents
    assert corpus.n_bytes == max_bytes


def test_hub_folder_is_told_apart_by_its_files(dataset: Path) -> None:
    before = open_corpus(hub(dataset)).source
    write_table(dataset / "plain" / "train-2.parquet", ["more"])
    assert open_corpus(hub(dataset)).source != before


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"split": "dev"}, "dev"),
        ({"subset": "none"}, "none"),
        ({"column": "body"}, "no 'body' in ['id', 'text']"),
        ({"column": "id"}, "'id' is not a string"),
    ],
    ids=str,
)
def test_what_a_hub_folder_lacks_is_named(dataset: Path, keys: dict[str, str], reason: str) -> None:
    said = refusal(hub(dataset, **keys))
    assert said.startswith(f"{dataset} ")
    assert reason in said
    (dataset.parent / "bare").mkdir()
    assert str(dataset.parent / "bare") in refusal(hub(dataset.parent / "bare"))


@pytest.mark.parametrize("line", ["broken", '{"body": "\\ud800"}'], ids=["broken", "surrogate"])
def test_hub_reads_json_lines_and_names_bad_ones(lines: Path, line: str) -> None:
    assert texts_of(hub(lines, column="body")) == ["r0", "r1", "r2"]
    assert "'n' is not a string" in refusal(hub(lines, column="n"))
    with (lines / "rows.jsonl").open("a") as file:
        file.write(f"\n{line}\n")
    assert refusal(hub(lines, column="body")).startswith(f"{lines} train: ")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_column_that_csv_files_lack_is_named(tmp_path: Path) -> None:
    """Their columns are known only when a row is read; `datasets` leaves the file open."""
    (tmp_path / "train.csv").write_text("body,n\nsome text,1\nmore text,2\n")
    assert texts_of(hub(tmp_path, column="body")) == ["some text", "more text"]
    assert "no 'text' in ['body', 'n']" in refusal(hub(tmp_path))
    gc.collect()


def test_hub_out_of_reach_says_what_else_to_do(tmp_path: Path) -> None:
    words = ["model=nano", "data=tinystories", f"data.cache_dir={tmp_path}"]
    ended = run(
        str(ROOT / "data" / "prepare.py"),
        *words,
        cwd=tmp_path,
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path),
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    for word in ("roneneldan/TinyStories", "data=stdlib", "data.path", "data.name"):
        assert word in line
