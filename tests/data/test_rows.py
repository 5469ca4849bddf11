"""Documents in JSON lines, Parquet files and data sets laid out as on the Hugging Face hub."""

import gc
import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mla_lm import load_config
from mla_lm.config import DataConfig
from mla_lm.data.corpora import open_corpus
from tests.conftest import one_line
from tests.data.conftest import corpus_config, keys_of, refusal, some_text, texts_of, written
from tests.processes import ROOT, run

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
each_suffix = pytest.mark.parametrize("suffix", ["", ".gz"])


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write_table(path: Path, texts: Any, *, column: str = "text", rows: int = 100) -> Path:
    """A Parquet file with the texts in one of two columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"id": list(range(len(texts))), column: texts}
    pq.write_table(pa.table(columns), path, row_group_size=rows)
    return path


def jsonl(path: Path, **keys: Any) -> DataConfig:
    return corpus_config("jsonl", path=path, **keys)


def parquet(path: Path, **keys: Any) -> DataConfig:
    return corpus_config("parquet", path=path, **keys)


def hub(name: Path | str, **keys: Any) -> DataConfig:
    return corpus_config("hub", name=name, **keys)


LINES = {
    "ends within a line": (b'{"text": "one\\ntwo\xe2\x80\xa8"}', ["one\ntwo\u2028"]),
    "blank lines": (b'{"text": "a"}\n\n  \t\n{"text": "b"}\n', ["a", "b"]),
    "BOM": (b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}', ["a", "b"]),
    "CRLF": (b'{"text": "a"}\r\n\r\n{"text": "b"}\r\n', ["a", "b"]),
    "escapes": (b'{"text": "\\u7d42 \\ud83d\\ude42 \\n\\u0000"}', ["終 🙂 \n\0"]),
    "null and empty": (b'{"text": null}\n{"text": ""}\n{"text": "b"}\n', ["", "", "b"]),
    "NaN elsewhere": (b'{"text": "a", "score": NaN}\n', ["a"]),
    "half a surrogate pair elsewhere": (b'{"text": "a", "title": "\\udfff"}\n', ["a"]),
    "empty file": (b"", []),
}


@each_suffix
@pytest.mark.parametrize(("content", "expected"), LINES.values(), ids=LINES)
def test_json_lines(tmp_path: Path, suffix: str, content: bytes, expected: list[str]) -> None:
    cfg = jsonl(
        written(tmp_path / f"rows{suffix}", content.replace(b"text", b"body")), field="body"
    )
    assert texts_of(cfg) == expected
    assert keys_of(cfg) == [text.encode() for text in expected]


def test_a_folder_of_json_lines_holds_plain_and_compressed_files(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for name in ("c.jsonl", "a.jsonl.gz", "inner/b.jsonl", "README.md", "x.json", "y.txt.gz"):
        written(tmp_path / name, json.dumps({"text": name}).encode())
    assert texts_of(jsonl(tmp_path)) == ["a.jsonl.gz", "c.jsonl", "inner/b.jsonl"]
    path = tmp_path / "members.jsonl.gz"
    path.write_bytes(b"".join(gzip.compress(b'{"text": "%d"}\n' % i) for i in range(3)))
    assert texts_of(jsonl(path)) == ["0", "1", "2"]


BAD = {
    "missing field": (b'{"body": "a"}', "no 'text' in {'body': 'a'}"),
    "number": (b'{"text": 0}', "'text' is not a string"),
    "list": (b'{"text": []}', "'text' is not a string"),
    "array": (b'["text"]', "no 'text' in ['text']"),
    "cut off": (b'{"text": "a"', "not JSON"),
    "two objects": (b'{"text": "a"} {"text": "b"}', "not JSON"),
    "not UTF-8": (b'{"text": "\xff"}', "not JSON"),
    "half a surrogate pair": (b'{"text": "ab\\ud800"}', "surrogate pair at character 2"),
    "nested too deeply": (b"[" * 10**5, "not JSON"),
    "number too long": (b'{"text": "a", "n": ' + b"7" * 5000 + b"}", "not JSON"),
}


@each_suffix
@pytest.mark.parametrize(("line", "reason"), BAD.values(), ids=BAD)
def test_a_bad_line_is_named(tmp_path: Path, suffix: str, line: bytes, reason: str) -> None:
    content = b'{"text": "a"}\r\n\n{"text": "\xe2\x80\xa8"}\n' + line + b"\n[]\n"
    path = written(tmp_path / f"rows.jsonl{suffix}", content)
    said = refusal(jsonl(path))
    assert said.startswith(f"{path}: line 4: ")
    assert reason in said


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda packed: packed[:-20],
    "another format": lambda packed: b"this is text\n" * 100,
    "flipped bits": lambda packed: (
        packed[:30] + bytes(b ^ 255 for b in packed[30:60]) + packed[60:]
    ),
    "wrong end": lambda packed: packed[:-8] + bytes(4) + packed[-4:],
}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_gzip_or_parquet_is_named(
    tmp_path: Path, kind: str, damage: Callable[[bytes], bytes]
) -> None:
    texts = [some_text(9, seed=seed) for seed in range(40)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    if kind == "jsonl":
        path = written(tmp_path / "rows.jsonl.gz", lines.encode())
    else:
        path = tmp_path / "rows.parquet"
        pq.write_table(pa.table({"text": texts}), path)
    path.write_bytes(damage(path.read_bytes()))
    assert refusal(corpus_config(kind, path=path)).startswith(f"{path}: ")
    if kind == "parquet":
        assert refusal(hub(tmp_path)).startswith(f"{tmp_path} train: ")


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


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
@pytest.mark.parametrize("name", ["a.parquet", "no_suffix", "draft [1] a*b? 50% #ï.parquet"])
def test_parquet_documents_are_the_strings_of_the_column(
    tmp_path: Path, kind: str, name: str
) -> None:
    texts = pa.array(["one\ntwo", "終わり", "", "naïve\r\n", "one\ntwo", None])
    stored = texts.dictionary_encode() if kind == "dictionary" else texts.cast(kind)
    cfg = parquet(write_table(tmp_path / ".c" / name, stored, column="body", rows=2), column="body")
    assert texts_of(cfg) == [*texts.to_pylist()[:-1], ""]
    assert keys_of(cfg) == [text.encode() for text in texts_of(cfg)]


def test_a_parquet_folder_in_the_order_of_names_and_rows(tmp_path: Path) -> None:
    many = [f"row {i}" for i in range(700)]
    for name, texts in (("c", ["c"]), ("a", many), ("b/a", ["b"]), ("none", pa.array([], "str"))):
        write_table(tmp_path / f"{name}.parquet", texts, rows=90)
    (tmp_path / "README.md").write_text("no table")
    assert texts_of(parquet(tmp_path)) == [*many, "b", "c"]
    corpus = open_corpus(parquet(tmp_path, val_path=tmp_path / "[a-b].parquet"))
    assert [d.key for d in corpus.train()] == [b"b", b"c"]
    assert corpus.val is not None
    assert [d.key for d in corpus.val()] == [text.encode() for text in many]


@pytest.mark.parametrize("values", [[3, 1], [b"a", b"b"], [["a"], ["b"]]], ids=str)
def test_a_parquet_column_that_is_missing_or_no_text_is_named(tmp_path: Path, values: Any) -> None:
    path = write_table(tmp_path / "a.parquet", values)
    nested = isinstance(values[0], list)
    reason = "no column 'text' of text in id, " if nested else "row 1: 'text' is not a string"
    assert refusal(parquet(path)).startswith(f"{path}: {reason}")
    assert refusal(parquet(path, column="no")).startswith(f"{path}: no column 'no' of text in id, ")


def test_a_long_line_is_refused_before_it_is_read_whole(tmp_path: Path) -> None:
    """A line of 50 MB in 50 kB."""
    line = json.dumps({"text": "a" * 980}).encode().ljust(999) + b"\n"
    bomb = b'{"text": "' + b"a" * 50_000_000 + b'"}\n'
    path = written(tmp_path / "rows.jsonl.gz", line * 3 + bomb)
    assert texts_of(jsonl(written(tmp_path / "good.jsonl", line), max_row_bytes=1000)) == [
        "a" * 980
    ]
    del bomb
    tracemalloc.start()
    said = refusal(jsonl(path, max_row_bytes=1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert said == f"{path}: line 4: longer than data.max_row_bytes=1000"
    assert peak < 2_000_000


def test_a_string_of_many_parquet_rows_is_in_memory_once(tmp_path: Path) -> None:
    """1,000 rows of 100 kB, as text 25 MB a batch."""
    shared = pa.array(["a" * 100_000]).dictionary_encode()
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 1000), shared.dictionary)
    path = write_table(tmp_path / "shared.parquet", column, rows=1000)
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        lengths = {sum(map(len, d.parts)) for d in open_corpus(parquet(path)).train()}
    finally:
        pa.set_memory_pool(before)
    assert lengths == {100_000}
    assert pool.max_memory() < 10_000_000


def test_a_long_parquet_row_or_a_row_group_that_unpacks_is_refused(tmp_path: Path) -> None:
    texts = ["b", "a" * 100_000] * 10
    path = write_table(tmp_path / "rows.parquet", texts)
    said = refusal(parquet(path, max_row_bytes=99_999))
    assert said == f"{path}: row 2: 100,000 bytes, data.max_row_bytes=99999"
    assert "row 2: 100,000 bytes" in refusal(hub(tmp_path, max_row_bytes=99_999))
    columns = pa.table({"text": texts})
    pq.write_table(columns, path, use_dictionary=False, compression="zstd")
    assert texts_of(parquet(path, max_row_bytes=100_000)) == texts
    said = refusal(parquet(path, max_row_bytes=10_000))
    assert said.startswith(f"{path}: row group 1: ")
    assert said.endswith("more than 20 times data.max_row_bytes=10000")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, PLAIN),
        ({"subset": "plain", "split": "validation"}, ["v0", "v1"]),
        ({"subset": "other", "column": "body"}, ["o0", "o1", "o2"]),
        ({"max_bytes": 1}, []),
        ({"max_bytes": 2}, ["p0"]),
        ({"max_bytes": 12}, PLAIN[:5]),
        ({"max_bytes": 13}, PLAIN[:7]),
    ],
    ids=str,
)
def test_hub_streams_a_split_of_a_subset(
    dataset: Path, keys: dict[str, Any], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(dataset.parent))
    monkeypatch.chdir(dataset.parent)
    for name in ("~/data set", "data set"):
        assert texts_of(hub(name, **keys)) == expected


def test_hub_validates_on_a_split_of_its_own_and_knows_a_folder_by_its_files(dataset: Path) -> None:
    corpus = open_corpus(hub(dataset, val_split="validation"))
    assert corpus.val is not None
    assert [d.key for d in corpus.val()] == [b"v0", b"v1"]
    assert len(list(corpus.train())) == 8
    said = one_line(lambda: load_config(["data=hub", "data.name=o/s", "data.val_split=train"]))
    assert said.startswith("data.val_split=train: must not be")
    write_table(dataset / "plain" / "train-2.parquet", ["more"])
    assert open_corpus(hub(dataset)).source != corpus.source


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"split": "dev"}, "dev"),
        ({"subset": "none"}, "none"),
        ({"column": "body"}, "no 'body' in {'id': 0, 'text': 'p0'}"),
        ({"column": "id"}, "'id' is not a string"),
        ({"name": "bare"}, "bare"),
    ],
    ids=str,
)
def test_what_a_hub_folder_lacks_is_named(
    dataset: Path, keys: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dataset.parent)
    Path("bare").mkdir()
    keys = {"name": dataset, **keys}
    assert reason in refusal(hub(**keys))


@pytest.mark.parametrize("line", ["broken", '{"body": "\\ud800"}'], ids=["broken", "surrogate"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_hub_reads_json_lines_and_csv_and_names_bad_rows(tmp_path: Path, line: str) -> None:
    """The columns of CSV are known only when a row is read; `datasets` leaves the file open."""
    rows = [json.dumps({"body": f"r{i}"}) for i in range(3)]
    for name in ("lines", "table"):
        (tmp_path / name).mkdir()
    (tmp_path / "lines" / "rows.jsonl").write_text("\n".join(rows))
    assert texts_of(hub(tmp_path / "lines", column="body")) == ["r0", "r1", "r2"]
    (tmp_path / "lines" / "rows.jsonl").write_text("\n".join([*rows, line]))
    assert refusal(hub(tmp_path / "lines", column="body")).startswith(
        f"{tmp_path / 'lines'} train:"
    )
    (tmp_path / "table" / "train.csv").write_text("body,n\nsome text,1\nmore text,2\n")
    assert texts_of(hub(tmp_path / "table", column="body")) == ["some text", "more text"]
    assert "no 'text' in {'body'" in refusal(hub(tmp_path / "table"))
    gc.collect()


def test_hub_out_of_reach_says_what_else_to_do(tmp_path: Path) -> None:
    words = ["model=nano", "data=tinystories", f"data.cache_dir={tmp_path}"]
    extra = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    ended = run(str(ROOT / "data" / "prepare.py"), *words, cwd=tmp_path, **extra)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    for word in ("roneneldan/TinyStories", "data=stdlib", "data.path", "data.name"):
        assert word in line
