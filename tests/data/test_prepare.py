"""What the files of a prepared corpus hold, and what the manifest says of them."""

import hashlib
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_lm.config import TokenizerConfig
from mla_lm.data import Tokenizer, encoder, prepare, shards
from mla_lm.data import tokenizer as tokenizer_module
from mla_lm.data.shards import digest
from mla_lm.data.split import place
from tests.data.conftest import (
    MANIFEST_KEYS,
    MakeConfig,
    corpus_config,
    lasting,
    prepared_folder,
    some_text,
    tokenizer_keys,
    updated,
    write_rows,
)
from tests.data.splits import SPLITS, documents, file_texts, split_of


@pytest.mark.parametrize("fraction", [1e-9, 0.2, 0.6])
def test_streams_hold_every_document_behind_end_of_text(
    quick_config: MakeConfig, folder: Path, fraction: float
) -> None:
    data = prepare(quick_config(folder, val_fraction=fraction))
    for split, expected in split_of(file_texts(folder), fraction).items():
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
    manifest, texts = data.manifest, {k: t for k, t in file_texts(folder).items() if t}
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
    assert set(manifest) == set(MANIFEST_KEYS)
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
    for name, text in file_texts(folder).items():
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
    for split, expected in split_of(file_texts(folder), 0.2).items():
        assert documents(data, split) == expected


def test_a_cache_below_home_is_found(
    data_config: MakeConfig, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    prepare(data_config(folder, cache_dir="~/below"))
    assert list((tmp_path / "below").glob("text-*/manifest.json"))
