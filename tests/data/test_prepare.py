"""What the files of a prepared corpus hold, what the manifest says, and when it is made again."""

import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from mla_lm.config import DataConfig
from mla_lm.data import Tokenizer, preparation, prepare, prepared
from mla_lm.files import digest
from tests.conftest import one_line
from tests.data.conftest import (
    END_OF_TEXT,
    SPLITS,
    MakeConfig,
    corpus_config,
    documents,
    file_texts,
    hashed,
    lasting,
    prepared_folder,
    some_text,
    split_of,
    tokenizer_keys,
    updated,
    write_folder,
    write_rows,
)
from tests.processes import ROOT, run

PREPARE = str(ROOT / "data" / "prepare.py")


def caches(cfg: DataConfig) -> int:
    return len([*Path(cfg.cache_dir).glob("[!.]*")])


def test_the_command_prints_what_was_prepared_and_names_a_bad_path(tmp_path: Path) -> None:
    path, nowhere = write_folder(tmp_path / "text"), tmp_path / "nowhere"
    words = ["model=nano", "data=text", f"data.path={path}", "data.tokenizer.vocab_size=300"]
    done = run(PREPARE, *words, f"data.cache_dir={tmp_path / 'cache'}", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = (tmp_path / "cache").glob("[!.]*")
    manifest = json.loads((folder / "manifest.json").read_text())
    for split in SPLITS:
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(f"{split} "))
        assert f"{manifest[split]['documents']:,} documents" in line
        assert f"{manifest[split]['tokens']:,} tokens" in line
    assert done.stdout.endswith(f"in {folder}\n")
    done = run(PREPARE, "data=text", f"data.path={nowhere}", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: data.path={nowhere}: no such file")
    assert done.stderr.count("\n") == 1


def test_the_manifest_counts_what_is_there(
    config: MakeConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("empty.txt", "void.txt"):
        (folder / name).touch()
    cfg = config(folder)
    data = prepare(cfg)
    manifest, texts = data.manifest, {k: t for k, t in file_texts(folder).items() if t}
    n_bytes = n_tokens = 0
    for split, expected in split_of(texts, 0.2).items():
        assert documents(data, split) == expected
        (shard,) = manifest[split].pop("shards")
        path = prepared_folder(cfg) / shard["path"]
        tokens = len(getattr(data, split))
        size = sum(len(t.encode()) for t in expected)
        assert manifest[split] == {"documents": len(expected), "tokens": tokens, "bytes": size}
        assert shard == {"path": f"{split}-00000.bin", "tokens": tokens, "sha256": digest(path)}
        assert path.stat().st_size == 2 * tokens
        n_bytes, n_tokens = n_bytes + size, n_tokens + tokens
    assert manifest["bytes_per_token"] == pytest.approx(n_bytes / n_tokens, abs=1e-4)
    assert manifest["empty_documents"] == 2
    assert manifest["threshold"] == int(0.2 * 2**64)
    few = f"only {len(data.val):,} validation tokens"
    assert few in data.describe(n_dropped=1, n_epochs=1.5).replace("(1.50 epochs, 1 left over)", "")
    monkeypatch.setattr(prepared, "FEW", len(data.val))
    assert few not in data.describe(n_dropped=1, n_epochs=1.5)
    assert manifest["vocab_size"] == data.tokenizer.vocab_size == 300
    assert manifest["tokenizer_sha256"] == digest(prepared_folder(cfg) / "tokenizer.json")
    train = Tokenizer.train(split_of(texts, 0.2)["train"], vocab_size=300, end_of_text=END_OF_TEXT)
    assert data.tokenizer.json == train.json


def has_enough_to_train_on(texts: list[str | None]) -> bool:
    split = split_of({t: t for t in texts if t}, 1e-9) if any(texts) else {"train": []}
    n_bytes = [len(t.encode()) * (1 if t in split["train"] else -1) for t in texts if t]
    return bool(split["train"]) and sum(n_bytes) >= 0


row_texts = st.none() | st.text(max_size=30) | st.text("ab ", max_size=60)
corpora = st.lists(row_texts, min_size=2, max_size=12).filter(has_enough_to_train_on)


@settings(max_examples=30)
@given(
    texts=corpora,
    kind=st.sampled_from(["bpe", "bytes"]),
    block=st.sampled_from([1, 3, 1000]),
    batch=st.sampled_from([1, 3, 1000]),
)
def test_no_token_and_no_byte_is_lost(
    texts: list[str | None], kind: str, block: int, batch: int
) -> None:
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "BLOCK", block)
        patch.setattr(preparation, "BATCH", batch)
        path = write_rows(Path(name) / "rows.jsonl", texts)
        keys = {"path": path, "cache_dir": Path(name) / "cache", "val_fraction": 1e-9}
        learned = tokenizer_keys(kind, vocab_size=280)
        data = prepare(corpus_config("jsonl", tokenizer=learned, **keys))
        expected = split_of({t: t for t in texts if t}, 1e-9)
        for split in SPLITS:
            kept = [t for t in texts if t and t in expected[split]]
            assert documents(data, split) == kept
            ids = getattr(data, split)[:].tolist()
            n_bytes = sum(len(t.encode()) for t in kept)
            assert data.tokenizer.n_bytes(ids) == data.manifest[split]["bytes"] == n_bytes
            assert len(ids) == data.manifest[split]["tokens"]
        assert data.manifest["empty_documents"] == sum(not t for t in texts)


def test_files_to_validate_on_are_the_validation_split(config: MakeConfig, folder: Path) -> None:
    data = prepare(config(folder, val_path=folder / "03.txt", val_fraction=0.9))
    expected = file_texts(folder)
    assert "".join(documents(data, "val")) == expected.pop("03.txt")
    assert documents(data, "train") == list(expected.values())


@pytest.mark.parametrize(("block", "batch"), [(1, 1), (3, 2)])
def test_streams_do_not_depend_on_blocks(
    config: MakeConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, block: int, batch: int
) -> None:
    cfg = config(folder)
    expected = prepare(cfg)
    shutil.rmtree(prepared_folder(cfg))
    monkeypatch.setattr(preparation, "BLOCK", block)
    monkeypatch.setattr(preparation, "BATCH", batch)
    data = prepare(cfg)
    assert data.manifest["corpus"] == expected.manifest["corpus"]
    assert len(data.train.paths) > 3
    for split in SPLITS:
        one, other = getattr(data, split), getattr(expected, split)[:]
        ends = [None, 0, 5, 6, 33, 131, len(other) - 1, len(other), -70, 10**6]
        for window in (slice(start, stop) for start in ends for stop in ends):
            np.testing.assert_array_equal(one[window], other[window])
        one[3:9][:] = 0  # a slice is a copy
        np.testing.assert_array_equal(one[:], other)


def with_large_ids(content: str, *, n_more: int) -> str:
    """The JSON of the same tokenizer, all its ids moved behind `n_more` tokens nobody uses."""
    stages = json.loads(content)
    unused = {f"unused{index}": index for index in range(n_more)}
    moved = {token: index + n_more for token, index in stages["model"]["vocab"].items()}
    stages["model"]["vocab"] = unused | moved
    for token in stages["added_tokens"]:
        token["id"] += n_more
    return json.dumps(stages)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_a_large_vocabulary_takes_four_bytes_per_token(
    config: MakeConfig, folder: Path, tokenizer: Tokenizer, vocab_size: int, dtype: str
) -> None:
    path = folder.parent / "tokenizer.json"
    path.write_text(with_large_ids(tokenizer.json, n_more=vocab_size - tokenizer.vocab_size))
    keys = tokenizer_keys("pretrained", vocab_size=vocab_size, path=path)
    data = prepare(config(folder, tokenizer=keys))
    assert data.train[:].dtype == data.manifest["dtype"] == dtype
    assert data.train[:].max() > 2**16 - 300
    for split, expected in split_of(file_texts(folder), 0.2).items():
        assert documents(data, split) == expected
    too_small = config(folder, tokenizer=keys | {"vocab_size": 280})
    assert "data.tokenizer.vocab_size=280: " in one_line(lambda: prepare(too_small))


def test_a_prepared_corpus_is_found_again_without_a_lock(
    config: MakeConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    cfg = config(folder, cache_dir="~/below")
    first = prepare(cfg)
    (made,) = (folder.parent / "below").glob("text-*/")
    times = {p.name: p.stat().st_mtime_ns for p in made.iterdir()}
    shards = {"train-00000.bin", "val-00000.bin"}
    assert set(times) == {*shards, "tokenizer.json", "manifest.json", ".mla_lm"}
    shutil.move(folder, folder.parent / "elsewhere")
    monkeypatch.setattr(preparation, "FileLock", None)
    monkeypatch.setattr(Path, "mkdir", None)  # as in a read-only cache
    same = {"seq_len": 16, "batch_size": 2, "mask_documents": True, "verify": "full"}
    again = prepare(updated(cfg, path=folder.parent / "elsewhere", **same))
    assert again.manifest == first.manifest
    np.testing.assert_array_equal(again.train[:], first.train[:])
    assert {p.name: p.stat().st_mtime_ns for p in made.iterdir()} == times


CHANGES: dict[str, dict[str, Any]] = {
    "text": {},
    "time": {},
    "vocabulary": {"tokenizer": tokenizer_keys("bpe", vocab_size=280)},
    "bytes": {"tokenizer": "bytes"},
    "end of text": {"tokenizer": tokenizer_keys("bpe") | {"end_of_text": "<end>"}},
    "fraction": {"val_fraction": 0.6},
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_corpus_or_tokenizer_is_prepared_apart(
    config: MakeConfig, folder: Path, change: str
) -> None:
    cfg = config(folder)
    before = lasting(prepare(cfg).manifest)
    if change == "text":
        (folder / "00.txt").write_text(some_text(90, seed=99))
    if change == "time":
        os.utime(folder / "00.txt", ns=(1, 1))
    after = lasting(prepare(config(folder, **CHANGES[change])).manifest)
    assert caches(cfg) == 2
    assert (before == after) == (change == "time")


def test_another_pretrained_tokenizer_at_the_same_path_is_prepared_apart(
    config: MakeConfig, folder: Path, tokenizer: Tokenizer
) -> None:
    path = folder.parent / "tokenizer.json"
    path.write_text(tokenizer.json)
    cfg = config(folder, tokenizer=tokenizer_keys("pretrained", path=path))
    prepare(cfg)
    other = Tokenizer.train([some_text(99, seed=1)], vocab_size=300, end_of_text=END_OF_TEXT)
    path.write_text(other.json)
    assert prepare(cfg).tokenizer.json == other.json
    assert caches(cfg) == 2
    path.unlink()
    assert prepare(cfg, tokenizer=tokenizer).tokenizer.json == tokenizer.json
    assert caches(cfg) == 2


def test_generated_documents_depend_on_the_window_not_the_batch(tmp_path: Path) -> None:
    cfg = corpus_config("synthetic", n_documents=40, cache_dir=tmp_path / "cache")
    changes: list[dict[str, Any]] = [
        {},
        {"seq_len": 17},
        {"data_seed": 1},
        {"task": "copying"},
        {"batch_size": 2},
    ]
    for keys, expected in zip(changes, (1, 2, 3, 4, 4), strict=True):
        prepare(updated(cfg, **keys))
        assert caches(cfg) == expected


def test_a_tokenizer_that_drops_a_rare_character_is_noticed(
    config: MakeConfig, folder: Path
) -> None:
    """The probes do not hold a zero-width space; the count of bytes does."""
    content = Tokenizer.train((), vocab_size=257, end_of_text=END_OF_TEXT).json
    bpe = tokenizers.Tokenizer.from_str(content)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("\u200b", "removed"), level])
    path = folder.parent / "tokenizer.json"
    path.write_text(bpe.to_str())
    (folder / "03.txt").write_text("some\u200bwords")
    cfg = config(folder, tokenizer=tokenizer_keys("pretrained", path=path))
    assert "changes text: 'some" in one_line(lambda: prepare(cfg))


def test_a_corpus_with_a_bad_row_or_nothing_to_validate_on_is_not_finished(
    config: MakeConfig, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [some_text(30, seed=i) for i in range(30)])
    (tmp_path / "empty.jsonl").touch()
    cfg, whole = config(path, "jsonl", val_path=tmp_path / "empty.jsonl"), path.read_text()
    path.write_text(whole + "{]\n")
    for _ in range(2):
        assert one_line(lambda: prepare(cfg)).startswith(f"{path}: line 31: not JSON")
    path.write_text(whole)
    for _ in range(2):
        line = f"data.val_path={tmp_path / 'empty.jsonl'}: no text for validation"
        assert one_line(lambda: prepare(cfg)) == line
    assert not list(Path(cfg.cache_dir).glob("jsonl-*"))


def test_equal_rows_that_leave_little_to_train_on_are_refused(
    config: MakeConfig, tmp_path: Path
) -> None:
    one, other = sorted(["a row of text", "another row"], key=hashed)
    path = write_rows(tmp_path / "rows.jsonl", [one] * 40 + [other])
    said = one_line(lambda: prepare(config(path, "jsonl", val_fraction=1e-9)))
    assert said.startswith(f"{path}: too few different documents for data.val_fraction=1e-09: ")
    assert f"{len(other)} bytes to train on, {40 * len(one)} to validate on" in said
