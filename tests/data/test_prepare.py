"""Preparing a corpus once: what the files hold, what the manifest says, when it is done again."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from mla_lm.config import DataConfig, TokenizerConfig
from mla_lm.data import PreparedData, Tokenizer, encoder, head, prepare, shards
from mla_lm.data import tokenizer as tokenizer_module
from mla_lm.data.head import place
from mla_lm.data.shards import digest
from mla_lm.errors import UserError
from tests.data.conftest import (
    END_OF_TEXT,
    corpus_config,
    lasting,
    prepared_folder,
    some_text,
    tokenizer_keys,
    updated,
    write_folder,
    write_rows,
)

MakeConfig = Callable[..., DataConfig]
SPLITS = ("train", "val")
MANIFEST_KEYS = {
    *("settings", "name", "dtype", "vocab_size", "tokenizer_sha256", "corpus", "threshold"),
    *("empty_documents", "train", "val", "bytes_per_token", "python", "created", "seconds"),
}


def hashed(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def texts_of(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in sorted(folder.iterdir())}


def split_of(texts: dict[str, str], fraction: float) -> dict[str, list[str]]:
    """What each split must hold, in order; the keys are the keys of the documents."""
    held_out = {k for k in texts if hashed(k) < fraction * 2**64} or {min(texts, key=hashed)}
    return {
        "train": [text for key, text in texts.items() if key not in held_out],
        "val": [text for key, text in texts.items() if key in held_out],
    }


def documents(data: PreparedData, split: str) -> list[str]:
    ids = getattr(data, split)[:]
    starts = np.flatnonzero(ids == data.tokenizer.end_of_text)
    assert starts[0] == 0
    return [data.tokenizer.decode(part[1:].tolist()) for part in np.split(ids, starts[1:])]


def caches(cfg: DataConfig) -> int:
    return sum(p.is_dir() for p in Path(cfg.cache_dir).iterdir())


def assert_same(one: PreparedData, other: PreparedData) -> None:
    for split in SPLITS:
        np.testing.assert_array_equal(getattr(one, split)[:], getattr(other, split)[:])
    assert one.tokenizer.json == other.tokenizer.json
    assert one.manifest == other.manifest


def test_second_preparation_is_the_first(quick_config: MakeConfig, folder: Path) -> None:
    cfg = quick_config(folder)
    first = prepare(cfg)
    times = {p.name: p.stat().st_mtime_ns for p in prepared_folder(cfg).iterdir()}
    assert_same(first, prepare(cfg))
    assert {p.name: p.stat().st_mtime_ns for p in prepared_folder(cfg).iterdir()} == times
    expected = {"train-00000.bin", "val-00000.bin", "tokenizer.json", "manifest.json"}
    assert set(times) == expected


def test_a_prepared_corpus_needs_no_lock(
    quick_config: MakeConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = quick_config(folder)
    first = prepare(cfg)
    monkeypatch.setattr(
        import_module("mla_lm.data.prepare"), "FileLock", None
    )  # as in a read-only cache
    monkeypatch.setattr(Path, "mkdir", None)
    assert_same(first, prepare(cfg))


@pytest.mark.parametrize("fraction", [1e-9, 0.2, 0.6])
def test_streams_hold_every_document_behind_end_of_text(
    quick_config: MakeConfig, folder: Path, fraction: float
) -> None:
    data = prepare(quick_config(folder, val_fraction=fraction))
    for split, expected in split_of(texts_of(folder), fraction).items():
        assert documents(data, split) == expected
        assert data.tokenizer.decode(getattr(data, split)[:].tolist()) == "".join(expected)


def test_rows_are_their_own_keys(quick_config: MakeConfig, tmp_path: Path) -> None:
    texts = [some_text(30, seed=i) for i in range(30)]
    data = prepare(quick_config(write_rows(tmp_path / "rows.jsonl", texts), "jsonl"))
    for split, expected in split_of({t: t for t in texts}, 0.2).items():
        assert documents(data, split) == expected


def test_manifest_counts_what_is_there(quick_config: MakeConfig, folder: Path) -> None:
    for name in ("empty.txt", "void.txt"):
        (folder / name).touch()
    cfg = quick_config(folder)
    data = prepare(cfg)
    manifest, texts = data.manifest, {k: t for k, t in texts_of(folder).items() if t}
    n_bytes = n_tokens = 0
    for split, expected in split_of(texts, 0.2).items():
        (shard,) = manifest[split].pop("shards")
        path = prepared_folder(cfg) / shard["path"]
        tokens = len(getattr(data, split))
        size = sum(len(t.encode()) for t in expected)
        assert manifest[split] == {"documents": len(expected), "tokens": tokens, "bytes": size}
        assert shard == {"path": f"{split}-00000.bin", "tokens": tokens, "sha256": digest(path)}
        assert path.stat().st_size == 2 * tokens
        n_bytes, n_tokens = n_bytes + size, n_tokens + tokens
    assert set(manifest) == MANIFEST_KEYS
    assert manifest["bytes_per_token"] == pytest.approx(n_bytes / n_tokens, abs=1e-4)
    assert manifest["empty_documents"] == 2
    assert manifest["threshold"] == int(0.2 * 2**64)
    assert manifest["vocab_size"] == data.tokenizer.vocab_size == 300
    assert manifest["dtype"] == "uint16"
    assert manifest["python"].count(".") == 2


def test_manifest_knows_corpus_and_tokenizer_by_digest(
    quick_config: MakeConfig, folder: Path
) -> None:
    cfg = quick_config(folder)
    manifest, chain = prepare(cfg).manifest, ""
    for name, text in texts_of(folder).items():
        key = hashlib.sha256(name.encode()).digest()
        one = hashlib.sha256(key + text.encode()).digest()
        split = "val" if place(name.encode()) < manifest["threshold"] else "train"
        chain = hashlib.sha256(f"{chain} {split} ".encode() + one).hexdigest()
    assert manifest["corpus"] == chain
    assert manifest["tokenizer_sha256"] == digest(prepared_folder(cfg) / "tokenizer.json")


row_texts = st.none() | st.text(max_size=30) | st.text("ab ", max_size=60)
corpora = st.lists(row_texts, min_size=2, max_size=12).filter(
    lambda texts: len({t for t in texts if t}) > 1
)


@settings(max_examples=40)
@given(
    texts=corpora,
    kind=st.sampled_from(["bpe", "bytes"]),
    shard=st.sampled_from([2, 10, 1000]),
    at_once=st.sampled_from([1, 20, 1000]),
    saved=st.sampled_from([1, 50, 1000]),
)
def test_no_token_and_no_byte_is_lost(
    texts: list[str | None],
    kind: str,
    shard: int,
    at_once: int,
    saved: int,
) -> None:
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_BYTES", shard)
        patch.setattr(encoder, "ENCODED_AT_ONCE", at_once)
        patch.setattr(encoder, "SAVED_EVERY", saved)
        path = write_rows(Path(name) / "rows.jsonl", texts)
        keys = {"path": path, "cache_dir": Path(name) / "cache", "val_fraction": 1e-9}
        learned = tokenizer_keys(kind, vocab_size=280)
        data = prepare(corpus_config("jsonl", tokenizer=learned, **keys))
        expected = split_of({t: t for t in texts if t}, 1e-9)
        for split in SPLITS:
            kept = [t for t in texts if t and t in expected[split]]
            tokens = sum(len(data.tokenizer.encode(t)) + 1 for t in kept)
            assert len(getattr(data, split)) == data.manifest[split]["tokens"] == tokens
            assert documents(data, split) == kept
            ids = getattr(data, split)[:].astype(np.int64)
            n_bytes = sum(len(t.encode()) for t in kept)
            assert data.tokenizer.byte_lengths[ids].sum() == n_bytes
            assert data.manifest[split]["bytes"] == n_bytes
        assert data.manifest["empty_documents"] == sum(not t for t in texts)


def test_tokenizer_has_not_seen_the_validation_split(
    quick_config: MakeConfig, folder: Path
) -> None:
    texts = texts_of(folder)
    found = prepare(quick_config(folder)).tokenizer.json
    for seen, same in ((split_of(texts, 0.2)["train"], True), (list(texts.values()), False)):
        trained = Tokenizer.train(seen, vocab_size=300, end_of_text=END_OF_TEXT).json
        assert (found == trained) is same


def test_equal_rows_land_in_the_same_split(quick_config: MakeConfig, tmp_path: Path) -> None:
    texts = [some_text(9, seed=i) for i in range(30)] * 3
    random.Random(0).shuffle(texts)
    cfg = quick_config(write_rows(tmp_path / "rows.jsonl", texts), "jsonl", val_fraction=0.5)
    data = prepare(cfg)
    train, val = documents(data, "train"), documents(data, "val")
    assert len(val) > 9
    assert not set(train) & set(val)
    assert sorted(train + val) == sorted(texts)


def held_out(make: MakeConfig, path: Path, texts: Sequence[str]) -> set[str]:
    return set(documents(prepare(make(write_rows(path, texts), "jsonl")), "val"))


def test_split_depends_on_no_order_and_no_other_document(
    quick_config: MakeConfig, tmp_path: Path
) -> None:
    texts = [some_text(9, seed=i) for i in range(40)]
    more = [some_text(9, seed=i) for i in range(40, 60)]
    mixed = random.Random(0).sample(texts + more, 60)
    first = held_out(quick_config, tmp_path / "first.jsonl", texts)
    assert 2 < len(first) < 20
    assert held_out(quick_config, tmp_path / "turned.jsonl", texts[::-1]) == first
    assert held_out(quick_config, tmp_path / "mixed.jsonl", mixed) & set(texts) == first


def test_explicit_validation_files_are_the_validation_split(
    quick_config: MakeConfig, folder: Path
) -> None:
    held_out = folder / "03.txt"
    data = prepare(quick_config(folder, val_path=held_out, val_fraction=0.9))
    expected = {k: t for k, t in texts_of(folder).items() if k != "03.txt"}
    assert documents(data, "train") == list(expected.values())
    assert "".join(documents(data, "val")) == held_out.read_text()
    assert data.manifest["threshold"] == 0


@pytest.mark.parametrize(("kind", "suffix"), [("text", "txt"), ("jsonl", "jsonl")])
def test_explicit_validation_without_text_is_refused(
    quick_config: MakeConfig, tmp_path: Path, kind: str, suffix: str
) -> None:
    path = write_rows(tmp_path / f"rows.{suffix}", ["one", "two"])
    empty = tmp_path / f"empty.{suffix}"
    empty.touch()
    with pytest.raises(UserError, match="no text to validate on") as caught:
        prepare(quick_config(path, kind, val_path=empty))
    assert str(path) in str(caught.value)


def change_text(folder: Path, cfg: DataConfig) -> DataConfig:
    (folder / "00.txt").write_text(some_text(90, seed=99))
    return cfg


def add_document(folder: Path, cfg: DataConfig) -> DataConfig:
    (folder / "more.txt").write_text(some_text(90, seed=98))
    return cfg


def rename_document(folder: Path, cfg: DataConfig) -> DataConfig:
    (folder / "00.txt").rename(folder / "renamed.txt")
    return cfg


def other_vocabulary(folder: Path, cfg: DataConfig) -> DataConfig:
    return updated(cfg, tokenizer=cfg.tokenizer.model_copy(update={"vocab_size": 280}))


def other_fraction(folder: Path, cfg: DataConfig) -> DataConfig:
    return updated(cfg, val_fraction=0.6)


def other_tokenizer(folder: Path, cfg: DataConfig) -> DataConfig:
    keys = {"kind": "bytes", "vocab_size": 257}
    return updated(cfg, tokenizer=cfg.tokenizer.model_copy(update=keys))


def other_end_of_text(folder: Path, cfg: DataConfig) -> DataConfig:
    return updated(cfg, tokenizer=cfg.tokenizer.model_copy(update={"end_of_text": "<end>"}))


def explicit_validation(folder: Path, cfg: DataConfig) -> DataConfig:
    return updated(cfg, val_path=folder / "00.txt")


@pytest.mark.parametrize(
    "change",
    [
        *(change_text, add_document, rename_document, other_vocabulary),
        *(other_fraction, other_tokenizer, other_end_of_text, explicit_validation),
    ],
)
def test_another_corpus_or_tokenizer_is_prepared_apart(
    quick_config: MakeConfig, folder: Path, change: Callable[[Path, DataConfig], DataConfig]
) -> None:
    cfg = quick_config(folder)
    before = prepare(cfg)
    after = prepare(change(folder, cfg))
    assert caches(cfg) == 2
    texts = [data.tokenizer.decode(data.train[:].tolist()) for data in (before, after)]
    keys = ("vocab_size", "tokenizer_sha256", "corpus")
    assert texts[0] != texts[1] or any(before.manifest[k] != after.manifest[k] for k in keys)


def test_a_document_on_the_other_side_is_another_corpus(
    quick_config: MakeConfig, tmp_path: Path
) -> None:
    rows = [some_text(30, seed=seed) for seed in range(9)]
    digests = set()
    for n_val in (2, 4):
        folder = tmp_path / str(n_val)
        folder.mkdir()
        train = write_rows(folder / "a.jsonl", rows[:-n_val])
        val = write_rows(folder / "v.jsonl", rows[-n_val:])
        cfg = quick_config(train, "jsonl", val_path=val, tokenizer="bytes")
        digests.add(prepare(cfg).manifest["corpus"])
    assert len(digests) == 2


def test_a_file_in_pieces_is_not_taken_for_the_same_file_whole(
    quick_config: MakeConfig, folder: Path
) -> None:
    """One of two files to train on, named alone or as what validation leaves of the folder."""
    for path in sorted(folder.iterdir())[2:]:
        path.unlink()
    for path in folder.iterdir():
        path.write_text("a line\n\n" * 3000)
    held_out = folder / "01.txt"
    whole = prepare(quick_config(folder, val_path=held_out)).manifest["train"]
    pieces = prepare(quick_config(folder / "00.txt", val_path=held_out)).manifest["train"]
    assert whole["documents"] == 1 < pieces["documents"]
    assert whole["bytes"] == pieces["bytes"]


def test_full_verification_sees_text_that_changed_behind_its_size_and_time(
    quick_config: MakeConfig, folder: Path
) -> None:
    cfg, path = quick_config(folder), folder / "03.txt"
    prepare(cfg)
    before, text = path.stat(), path.read_text()
    path.write_text(text.replace("x", "y"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    prepare(cfg)
    with pytest.raises(UserError, match="its text is not what"):
        prepare(updated(cfg, verify="full"))
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    prepare(updated(cfg, verify="full"))


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(
    data_config: MakeConfig, folder: Path, tokenizer: Tokenizer
) -> None:
    path = folder.parent / "tokenizer.json"
    path.write_text(tokenizer.json)
    with pytest.raises(UserError, match=r"data\.tokenizer\.vocab_size=280: .* has 300"):
        prepare(
            data_config(
                folder,
                tokenizer="pretrained",
                tokenizer__path=path,
                tokenizer__vocab_size=280,
            )
        )


def test_a_tokenizer_that_drops_a_rare_character_is_noticed(
    data_config: MakeConfig, folder: Path
) -> None:
    """The probes do not hold a zero-width space; the count of bytes does."""
    bpe = tokenizers.Tokenizer.from_str(
        Tokenizer.train((), vocab_size=257, end_of_text=END_OF_TEXT).json
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\u200b", "removed"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    (folder.parent / "tokenizer.json").write_text(bpe.to_str())
    cfg = data_config(
        folder, tokenizer="pretrained", tokenizer__path=folder.parent / "tokenizer.json"
    )
    (folder / "03.txt").write_text("some\u200bwords")
    with pytest.raises(UserError, match="changes text: 'some"):
        prepare(cfg)


def test_a_cache_below_home_is_found(
    data_config: MakeConfig, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    prepare(data_config(folder, cache_dir="~/below"))
    assert list((tmp_path / "below").glob("text-*/manifest.json"))


def test_another_pretrained_tokenizer_at_the_same_path_is_prepared_apart(
    data_config: MakeConfig, folder: Path, tokenizer: Tokenizer
) -> None:
    path = folder.parent / "tokenizer.json"
    path.write_text(tokenizer.json)
    cfg = data_config(folder, tokenizer="pretrained", tokenizer__path=path)
    prepare(cfg)
    other = Tokenizer.train([some_text(99, seed=1)], vocab_size=300, end_of_text=END_OF_TEXT)
    path.write_text(other.json)
    assert prepare(cfg).tokenizer.json == other.json
    assert caches(cfg) == 2


@pytest.mark.parametrize(
    "keys",
    [{"seq_len": 16}, {"batch_size": 2}, {"mask_documents": True}, {"verify": "full"}],
    ids=str,
)
def test_what_shapes_batches_only_does_not_prepare_again(
    quick_config: MakeConfig, folder: Path, keys: dict[str, Any]
) -> None:
    cfg = quick_config(folder)
    prepare(cfg)
    prepare(updated(cfg, **keys))
    assert caches(cfg) == 1


@pytest.mark.parametrize(
    ("keys", "expected"),
    [({"seq_len": 17}, 2), ({"batch_size": 2}, 1), ({"data_seed": 1}, 2), ({"task": "copying"}, 2)],
    ids=str,
)
def test_generated_documents_depend_on_the_window(
    data_config: MakeConfig, keys: dict[str, Any], expected: int
) -> None:
    cfg = data_config(kind="synthetic", n_documents=40)
    prepare(cfg)
    prepare(updated(cfg, **keys))
    assert caches(cfg) == expected


@pytest.mark.parametrize("single", [False, True])
def test_a_moved_corpus_is_found_again(
    quick_config: MakeConfig, folder: Path, single: bool
) -> None:
    if single:
        (folder / "00.txt").write_text(some_text(4000, seed=0))
    path = folder / "00.txt" if single else folder
    cfg = quick_config(path)
    first = prepare(cfg)
    shutil.move(folder, folder.parent / "elsewhere")
    moved = folder.parent / "elsewhere" / path.relative_to(folder)
    assert_same(prepare(updated(cfg, path=moved)), first)
    assert caches(cfg) == 1


def test_a_touched_file_has_the_same_text(quick_config: MakeConfig, folder: Path) -> None:
    cfg = quick_config(folder)
    first = prepare(cfg)
    os.utime(folder / "00.txt", ns=(1, 1))
    second = prepare(cfg)
    for key in {"settings", "created", "seconds"}:
        first.manifest.pop(key)
        second.manifest.pop(key)
    assert second.manifest == first.manifest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.txt": "x"}, "1 document"),
        ({"a.txt": ""}, "0 document"),
        ({"a.txt": "", "b.txt": ""}, "0 document"),
        ({"a.txt": "", "b.txt": "text"}, "1 document"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_too_little_text_is_refused(
    quick_config: MakeConfig, tmp_path: Path, kind: str, content: dict[str, str], message: str
) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)
    path = folder if len(content) > 1 else folder / "a.txt"
    cfg = quick_config(path, tokenizer=kind)
    for _ in range(2):
        with pytest.raises(UserError, match=message) as caught:
            prepare(cfg)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_everything_held_out_is_refused(quick_config: MakeConfig, folder: Path, kind: str) -> None:
    with pytest.raises(UserError, match=r"data\.val_fraction=0\.99999"):
        prepare(quick_config(folder, tokenizer=kind, val_fraction=1 - 1e-9))


def test_one_text_many_times_is_refused(quick_config: MakeConfig, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ["the same"] * 9)
    with pytest.raises(UserError, match="all the same"):
        prepare(quick_config(path, "jsonl"))


def test_a_document_may_be_longer_than_a_shard(
    quick_config: MakeConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = quick_config(folder)
    expected = prepare(cfg)
    shutil.rmtree(prepared_folder(cfg))
    monkeypatch.setattr(shards, "SHARD_BYTES", 64)
    data = prepare(cfg)
    for split in SPLITS:
        files = data.manifest[split]["shards"]
        sizes = [(prepared_folder(cfg) / f["path"]).stat().st_size for f in files]
        assert len(sizes) > 5
        assert set(sizes[:-1]) == {64}
        assert 0 < sizes[-1] <= 64
        assert sum(f["tokens"] for f in files) == data.manifest[split]["tokens"]
        one, other = getattr(data, split), getattr(expected, split)[:]
        for window in (slice(None), slice(5, 6), slice(30, 35), slice(33, 131), slice(-70, None)):
            np.testing.assert_array_equal(one[window], other[window])


@pytest.mark.parametrize(
    ("at_once", "saved", "piece"), [(1, 1, 8), (100, 1, 2048), (10**6, 300, 32), (700, 10**6, 8)]
)
def test_streams_do_not_depend_on_how_they_are_written(
    quick_config: MakeConfig,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    at_once: int,
    saved: int,
    piece: int,
) -> None:
    cfg = quick_config(folder)
    expected = prepare(cfg)
    shutil.rmtree(prepared_folder(cfg))
    monkeypatch.setattr(encoder, "ENCODED_AT_ONCE", at_once)
    monkeypatch.setattr(encoder, "SAVED_EVERY", saved)
    monkeypatch.setattr(tokenizer_module, "PIECE", piece)
    assert lasting(prepare(cfg).manifest) == lasting(expected.manifest)


def test_the_head_decides_what_the_tokenizer_learns(
    quick_config: MakeConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "HEAD", 700)
    data = prepare(quick_config(folder, val_fraction=0.5))
    train = split_of(texts_of(folder), 0.5)["train"]
    n_read = next(n for n in range(len(train)) if sum(map(len, train[:n])) >= 700)
    assert n_read < len(train)
    trained = Tokenizer.train(train[:n_read], vocab_size=300, end_of_text=END_OF_TEXT)
    assert data.tokenizer.json == trained.json
    assert documents(data, "train") == train


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
def test_large_vocabulary_takes_four_bytes_a_token(
    quick_config: MakeConfig, folder: Path, tokenizer: Tokenizer, vocab_size: int, dtype: str
) -> None:
    path = folder.parent / "tokenizer.json"
    path.write_text(with_large_ids(tokenizer.json, n_more=vocab_size - tokenizer.vocab_size))
    keys = tokenizer_keys("pretrained", vocab_size=vocab_size) | {"path": str(path)}
    cfg = updated(quick_config(folder), tokenizer=TokenizerConfig(**keys))
    data = prepare(cfg)
    assert data.manifest["vocab_size"] == vocab_size
    assert data.manifest["dtype"] == dtype
    (shard,) = data.manifest["train"]["shards"]
    size = (prepared_folder(cfg) / shard["path"]).stat().st_size
    assert size == shard["tokens"] * np.dtype(dtype).itemsize
    assert data.train[:].max() > 2**16 - 300
    for split, expected in split_of(texts_of(folder), 0.2).items():
        assert documents(data, split) == expected


def test_the_place_of_the_cache_does_not_matter(
    quick_config: MakeConfig, folder: Path, tmp_path: Path
) -> None:
    one = quick_config(folder)
    other = updated(one, cache_dir=tmp_path / "a" / "deep" / "cache", path=folder / "*.txt")
    first, second = prepare(one), prepare(other)
    assert prepared_folder(one).name == prepared_folder(other).name
    first.manifest.pop("name")
    second.manifest.pop("name")
    assert lasting(first.manifest) == lasting(second.manifest)


def test_a_bad_row_leaves_nothing_that_looks_finished(
    quick_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "HEAD", 100)
    path = write_rows(tmp_path / "rows.jsonl", [some_text(30, seed=i) for i in range(30)])
    with path.open("a") as file:
        file.write("{]\n")
    cfg = quick_config(path, "jsonl")
    for _ in range(2):
        with pytest.raises(UserError, match="line 31: not JSON") as caught:
            prepare(cfg)
        assert str(path) in str(caught.value)
    assert not list(Path(cfg.cache_dir).glob("*/manifest.json"))


def test_write_folder_has_documents_for_both_splits(tmp_path: Path) -> None:
    """The tests above would show nothing were one of them empty."""
    parts = split_of(texts_of(write_folder(tmp_path / "text")), 0.2)
    assert len(parts["val"]) > 1
    assert len(parts["train"]) > 5
