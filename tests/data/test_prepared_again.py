"""When a corpus is prepared again, and when what is prepared is found again."""

import os
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from mla_lm.config import DataConfig
from mla_lm.data import Tokenizer, prepare
from mla_lm.errors import UserError
from tests.data.conftest import (
    END_OF_TEXT,
    MakeConfig,
    lasting,
    prepared_folder,
    some_text,
    updated,
    write_rows,
)
from tests.data.splits import assert_same


def caches(cfg: DataConfig) -> int:
    return sum(p.is_dir() for p in Path(cfg.cache_dir).iterdir())


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
