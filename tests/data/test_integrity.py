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
from mla_lm.data import PreparedData, preparation, prepare
from mla_lm.data.prepared import write_manifest
from tests.conftest import one_line
from tests.data.conftest import (
    corpus_config,
    prepared_folder,
    tokenizer_keys,
    updated,
    write_folder,
)

SHARDS = ("train-00000.bin", "train-00001.bin", "val-00000.bin")
each_shard = pytest.mark.parametrize("name", SHARDS)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """A corpus of several shards."""
    root = tmp_path_factory.mktemp("prepared")
    path, cache = write_folder(root / "text"), root / "cache"
    keys = {"val_fraction": 0.3, "tokenizer": tokenizer_keys("bpe")}
    cfg = corpus_config("text", path=path, cache_dir=cache, **keys)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "BLOCK", 3)
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
    """What is said instead of opening; every file is there afterwards."""
    folder = prepared_folder(cfg)
    before = {p.name for p in folder.iterdir()}
    message = one_line(lambda: verified(cfg, verify))
    assert message.endswith(f"delete {folder}")
    assert {p.name for p in folder.iterdir()} == before
    return message


def flip(path: Path, *, token: int, bit: int) -> None:
    ids = np.fromfile(path, np.uint16)
    ids[token] ^= 1 << bit
    ids.tofile(path)


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_a_link(path: Path) -> None:
    path.symlink_to(path.rename(path.parents[2] / path.name))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "a folder": replace_by_a_folder,
    "a pipe": replace_by_a_pipe,
    "a link": replace_by_a_link,
    "a token short": lambda path: os.truncate(path, path.stat().st_size - 2),
    "odd": lambda path: os.truncate(path, path.stat().st_size - 3),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0\0"),
    "another": lambda path: path.write_bytes(b"{}"),
}


@pytest.mark.parametrize("verify", ["sizes", "full"])
@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", *SHARDS])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_missing_or_resized_file_is_named(
    cfg: DataConfig, verify: str, name: str, damage: Callable[[Path], Any]
) -> None:
    data = verified(cfg, verify)
    assert min(len(data.train.paths), len(data.val.paths)) > 1
    path = prepared_folder(cfg) / name
    damage(path)
    assert refusal(cfg, verify).startswith(f"{path}: ")


@each_shard
@pytest.mark.parametrize("bit", [0, 15])
@pytest.mark.parametrize("token", [0, 100, -1])
def test_a_flipped_bit_is_seen_by_full_verification(
    cfg: DataConfig, name: str, token: int, bit: int
) -> None:
    path = prepared_folder(cfg) / name
    flip(path, token=token, bit=bit)
    assert refusal(cfg, "full") == f"{path}: its bytes have changed; delete {path.parent}"


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("token", [0, 100, -1])
def test_an_id_beyond_the_vocabulary_is_never_returned(
    cfg: DataConfig, index: int, token: int
) -> None:
    path = prepared_folder(cfg) / f"train-{index:05}.bin"
    flip(path, token=token, bit=15)
    data = verified(cfg, "sizes")
    sizes = [shard["tokens"] for shard in data.manifest["train"]["shards"]]
    token %= sizes[index]
    at = sum(sizes[:index]) + token
    for window in (slice(at, at + 1), slice(max(0, at - 300), at + 300), slice(None)):
        said = one_line(lambda: data.train[window])  # noqa: B023
        assert said.startswith(f"{path}: id ")
        assert f"at token {token}," in said
    assert len(data.train[:at]) == at
    assert (data.train[at + 1 :] < 300).all()


def edited(value: Any) -> Any:
    match value:
        case dict():
            return {**value, "more": 1}
        case str():
            return value[:-1] + ("0" if value[-1] != "0" else "1")
        case _:
            return value + 1


FORGED: list[dict[str, Any]] = [
    {"tokenizer_sha256": 1},
    {"settings": []},
    {"settings": {"tokenizer": {"end_of_text": "no such token"}}},
    {"train": None},
    {"train": {"shards": [{"tokens": "9"}]}},
    {"train": {"shards": [{"tokens": 10**30}]}},
    {"val": {"shards": 3}},
]


def test_an_edited_manifest_or_tokenizer_is_refused(cfg: DataConfig) -> None:
    path = prepared_folder(cfg) / "manifest.json"
    whole = path.read_text()
    manifest = json.loads(whole)
    assert len(manifest) > 10
    for key, value in manifest.items():
        without = {k: v for k, v in manifest.items() if k != key}
        for changed in (without | {key: edited(value)}, without):
            path.write_text(json.dumps(changed))
            assert refusal(cfg).startswith(f"{path}: edited or damaged")
    for forged in FORGED:
        write_manifest(path.parent, {k: v for k, v in manifest.items() if k != "sha256"} | forged)
        assert refusal(cfg).startswith(f"{path.parent}")
    manifest["train"]["shards"].pop()
    for content in (json.dumps(manifest), whole[:50], "[]", "null", '{"sha256": 1}'):
        path.write_text(content)
        assert refusal(cfg).startswith(f"{path}: ")
    path.write_text(whole)
    path = path.with_name("tokenizer.json")
    path.write_text(path.read_text().replace('"Ġ', '"ġ', 1))
    assert refusal(cfg).startswith(f"{path}: changed after preparation")


def test_a_refused_folder_is_prepared_again_once_deleted(cfg: DataConfig) -> None:
    before = prepare(cfg).train[:].tolist()
    (prepared_folder(cfg) / "train-00000.bin").unlink()
    refusal(cfg)
    shutil.rmtree(prepared_folder(cfg))
    assert prepare(cfg).train[:].tolist() == before


def test_full_verification_sees_text_that_changed_behind_its_size_and_time(
    cfg: DataConfig, tmp_path: Path
) -> None:
    folder = shutil.copytree(Path(str(cfg.model_dump()["path"])), tmp_path / "text")
    cfg, path = updated(cfg, path=folder), folder / "03.txt"
    before, text = path.stat(), path.read_text()
    path.write_text(text.replace("x", "y"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    verified(cfg, "sizes")
    assert refusal(cfg, "full").startswith(f"{folder}: not the text that")
