"""Prepared folders that are not as they were prepared: named before a single token is used."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mla_lm.config import DataConfig
from mla_lm.data import PreparedData, Tokenizer, prepare, shards
from mla_lm.errors import UserError
from tests.data.conftest import (
    END_OF_TEXT,
    MANIFEST_KEYS,
    corpus_config,
    prepared_folder,
    some_text,
    tokenizer_keys,
    updated,
    write_folder,
)

STORED_KEYS = (*MANIFEST_KEYS, "sha256")
SHARD_BYTES = 512
SHARDS = ("train-00000.bin", "train-00001.bin", "val-00000.bin")
each_verification = pytest.mark.parametrize("verify", ["sizes", "full"])
each_shard = pytest.mark.parametrize("name", SHARDS)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """A corpus of several shards in each split."""
    root = tmp_path_factory.mktemp("prepared")
    cfg = corpus_config(
        "text",
        path=write_folder(root / "text"),
        cache_dir=root / "cache",
        val_fraction=0.3,
        tokenizer=tokenizer_keys("bpe"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_BYTES", SHARD_BYTES)
        prepare(cfg)
    return cfg


@pytest.fixture
def cfg(prepared: DataConfig, tmp_path: Path) -> DataConfig:
    """The same in a cache of its own, to be damaged."""
    shutil.copytree(prepared.cache_dir, tmp_path / "cache")
    return updated(prepared, cache_dir=tmp_path / "cache")


def verified(cfg: DataConfig, verify: str) -> PreparedData:
    return prepare(updated(cfg, verify=verify))


def refusal(cfg: DataConfig, verify: str = "sizes") -> str:
    """What is said instead of opening; everything is as it was afterwards."""
    folder = prepared_folder(cfg)
    before = {p.name: p.stat() for p in folder.iterdir()}
    with pytest.raises(UserError) as caught:
        verified(cfg, verify)
    message = str(caught.value)
    assert "\n" not in message
    assert f"delete {folder}" in message
    assert {p.name for p in folder.iterdir()} == set(before)
    return message


def flip(path: Path, *, token: int, bit: int) -> None:
    ids = np.memmap(path, dtype=np.uint16, mode="r+")
    ids[token] ^= 1 << bit
    ids.flush()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 2)


def truncate_all(path: Path) -> None:
    os.truncate(path, 0)


def make_odd(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0\0")


def rename(path: Path) -> None:
    path.rename(path.with_name("train-99999.bin"))


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def damage_text(change: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda path: path.write_text(change(path.read_text()))


@each_verification
def test_an_undamaged_folder_opens(cfg: DataConfig, verify: str) -> None:
    data = verified(cfg, verify)
    names = {shard.path.name for stream in (data.train, data.val) for shard in stream.shards}
    assert set(SHARDS) <= names
    assert data.train[:].max() < 300


@each_verification
@each_shard
@pytest.mark.parametrize(
    "damage",
    [Path.unlink, truncate, truncate_all, make_odd, lengthen, rename, replace_by_a_folder],
)
def test_a_shard_of_another_size_is_named(
    cfg: DataConfig, verify: str, name: str, damage: Callable[[Path], None]
) -> None:
    path = prepared_folder(cfg) / name
    damage(path)
    message = refusal(cfg, verify)
    assert message.startswith(f"{path}: ")
    assert "bytes where" in message


@each_shard
@pytest.mark.parametrize("bit", [0, 15])
@pytest.mark.parametrize("token", [0, 100, -1])
def test_a_flipped_bit_is_seen_by_full_verification(
    cfg: DataConfig, name: str, token: int, bit: int
) -> None:
    path = prepared_folder(cfg) / name
    token = token if token >= 0 else path.stat().st_size // 2 - 1
    flip(path, token=token, bit=bit)
    assert refusal(cfg, "full").startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("one", "other"), [("train-00000", "train-00001"), ("train-00000", "val-00000")]
)
def test_swapped_shards_are_seen_by_full_verification(
    cfg: DataConfig, one: str, other: str
) -> None:
    folder = prepared_folder(cfg)
    first, second, aside = folder / f"{one}.bin", folder / f"{other}.bin", folder / "aside"
    assert first.stat().st_size == second.stat().st_size
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    assert refusal(cfg, "full").startswith(f"{first}: ")


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("token", [0, 100, 255])
def test_an_id_beyond_the_vocabulary_is_never_returned(
    cfg: DataConfig, index: int, token: int
) -> None:
    path = prepared_folder(cfg) / f"train-{index:05}.bin"
    flip(path, token=token, bit=15)
    data = verified(cfg, "sizes")
    at = index * SHARD_BYTES // 2 + token
    for window in (slice(at, at + 1), slice(max(0, at - 300), at + 300), slice(None)):
        with pytest.raises(UserError) as caught:
            data.train[window]
        assert str(caught.value).startswith(f"{path}: ")
        assert f"token {token}," in str(caught.value)
        assert "\n" not in str(caught.value)
    assert len(data.train[:at]) == at
    assert data.train[at + 1 :].max() < 300


def edited(value: Any) -> Any:
    match value:
        case dict():
            return {**value, "more": 1}
        case str():
            return value[:-1] + ("0" if value[-1] != "0" else "1")
        case _:
            return value + 1


@each_verification
@pytest.mark.parametrize("change", ["edited", "removed"])
@pytest.mark.parametrize("key", STORED_KEYS)
def test_an_edited_manifest_is_refused(cfg: DataConfig, verify: str, key: str, change: str) -> None:
    path = prepared_folder(cfg) / "manifest.json"
    manifest = json.loads(path.read_text())
    assert set(manifest) == set(STORED_KEYS)
    value = manifest.pop(key)
    path.write_text(json.dumps(manifest | ({key: edited(value)} if change == "edited" else {})))
    assert refusal(cfg, verify).startswith(f"{path}: ")


def test_a_shard_taken_out_of_the_manifest_is_refused(cfg: DataConfig) -> None:
    path = prepared_folder(cfg) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["train"]["shards"].pop()
    path.write_text(json.dumps(manifest))
    assert refusal(cfg).startswith(f"{path}: edited")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_manifest_is_refused(cfg: DataConfig, share: float) -> None:
    path = prepared_folder(cfg) / "manifest.json"
    os.truncate(path, int(share * path.stat().st_size))
    assert refusal(cfg).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b'["sha256"]',
        b"3",
        b"null",
        b"true",
        b'"sha256"',
        b"{}",
        b'{"sha256": 1}',
        b"\xff{}",
        b"\0" * 99,
    ],
)
def test_something_else_for_a_manifest_is_refused(cfg: DataConfig, content: bytes) -> None:
    path = prepared_folder(cfg) / "manifest.json"
    path.write_bytes(content)
    assert refusal(cfg).startswith(f"{path}: ")


def test_a_folder_that_lost_its_manifest_is_named(cfg: DataConfig) -> None:
    path = prepared_folder(cfg) / "manifest.json"
    path.unlink()
    assert refusal(cfg).startswith(f"{path}: ")


def swap(path: Path) -> None:
    other = Tokenizer.train([some_text(500, seed=5)], vocab_size=300, end_of_text=END_OF_TEXT)
    path.write_text(other.json)


@each_verification
@pytest.mark.parametrize(
    "damage",
    [
        damage_text(lambda text: text.replace('"Ġ', '"ġ', 1)),
        damage_text(lambda text: text + "\n"),
        damage_text(lambda text: text[:50]),
        damage_text(lambda text: ""),
        lambda path: path.write_bytes(b"\xff"),
        Path.unlink,
        replace_by_a_folder,
        swap,
    ],
    ids=["edited", "line end", "truncated", "empty", "no UTF-8", "missing", "folder", "swapped"],
)
def test_another_tokenizer_is_refused(
    cfg: DataConfig, verify: str, damage: Callable[[Path], object]
) -> None:
    path = prepared_folder(cfg) / "tokenizer.json"
    before = path.read_bytes()
    damage(path)
    assert not path.is_file() or path.read_bytes() != before
    assert refusal(cfg, verify).startswith(f"{path}: ")


def test_a_refused_folder_is_prepared_again_once_deleted(cfg: DataConfig) -> None:
    before = prepare(cfg).train[:].tolist()
    truncate(prepared_folder(cfg) / SHARDS[0])
    refusal(cfg)
    shutil.rmtree(prepared_folder(cfg))
    assert prepare(cfg).train[:].tolist() == before
