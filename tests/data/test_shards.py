"""Preparing a corpus once, finding it again, and noticing when a prepared file is damaged."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mla_lm.config import DataConfig
from mla_lm.data import PreparedData, Tokenizer, prepare
from mla_lm.data.corpora import Document, documents, scan
from mla_lm.errors import UserError
from tests.data.conftest import some_text

MakeConfig = Callable[..., DataConfig]


def prepared_folder(cfg: DataConfig) -> Path:
    (only,) = (p for p in Path(cfg.cache_dir).iterdir() if p.suffix != ".tmp")
    return only


def split_documents(cfg: DataConfig) -> dict[str, list[Document]]:
    held_out = scan(cfg).validation
    found = list(documents(cfg))
    return {
        "train": [d for d in found if d.name not in held_out],
        "val": [d for d in found if d.name in held_out],
    }


def assert_same(one: PreparedData, other: PreparedData) -> None:
    np.testing.assert_array_equal(one.train, other.train)
    np.testing.assert_array_equal(one.val, other.val)
    assert one.tokenizer.json == other.tokenizer.json
    assert one.manifest == other.manifest


def test_second_preparation_is_the_first(data_config: MakeConfig, folder: Path) -> None:
    cfg = data_config(folder)
    first = prepare(cfg)
    times = {p.name: p.stat().st_mtime_ns for p in prepared_folder(cfg).iterdir()}
    second = prepare(cfg)
    assert {p.name: p.stat().st_mtime_ns for p in prepared_folder(cfg).iterdir()} == times
    assert set(times) == {"train.bin", "val.bin", "tokenizer.json", "manifest.json"}
    assert_same(first, second)


def test_streams_hold_every_document_behind_end_of_text(
    data_config: MakeConfig, folder: Path
) -> None:
    cfg = data_config(folder)
    data = prepare(cfg)
    for split, expected in split_documents(cfg).items():
        stream = np.asarray(getattr(data, split))
        starts = np.flatnonzero(stream == data.tokenizer.end_of_text)
        assert starts[0] == 0
        pieces = np.split(stream, starts[1:])
        assert [data.tokenizer.decode(piece[1:].tolist()) for piece in pieces] == [
            d.text for d in expected
        ]
        assert data.tokenizer.decode(stream.tolist()) == "".join(d.text for d in expected)


def test_manifest_counts_what_is_there(data_config: MakeConfig, folder: Path) -> None:
    cfg = data_config(folder)
    data = prepare(cfg)
    for split, expected in split_documents(cfg).items():
        assert data.manifest[split] == {
            "documents": len(expected),
            "tokens": len(getattr(data, split)),
            "bytes": sum(len(d.text.encode()) for d in expected),
        }
    assert data.manifest["corpus"] == scan(cfg).digest
    assert data.manifest["vocab_size"] == data.tokenizer.vocab_size == 300
    assert data.manifest["python"].count(".") == 2


def test_bytes_of_the_tokens_are_the_bytes_of_the_text(
    data_config: MakeConfig, folder: Path
) -> None:
    data = prepare(data_config(folder))
    for split in ("train", "val"):
        stream = np.asarray(getattr(data, split)).astype(np.int64)
        assert data.tokenizer.byte_lengths[stream].sum() == data.manifest[split]["bytes"]


def test_tokenizer_has_not_seen_the_validation_split(data_config: MakeConfig, folder: Path) -> None:
    cfg = data_config(folder)
    training = [d.text for d in split_documents(cfg)["train"]]
    assert prepare(cfg).tokenizer.json == Tokenizer.train(training, vocab_size=300).json


def change_text(folder: Path, cfg: DataConfig) -> DataConfig:
    (folder / "00.txt").write_text(some_text(90, seed=99))
    return cfg


def add_document(folder: Path, cfg: DataConfig) -> DataConfig:
    (folder / "more.txt").write_text(some_text(90, seed=98))
    return cfg


def other_vocabulary(folder: Path, cfg: DataConfig) -> DataConfig:
    return cfg.model_copy(
        update={"tokenizer": cfg.tokenizer.model_copy(update={"vocab_size": 280})}
    )


def other_fraction(folder: Path, cfg: DataConfig) -> DataConfig:
    return cfg.model_copy(update={"val_fraction": 0.6})


@pytest.mark.parametrize("change", [change_text, add_document, other_vocabulary, other_fraction])
def test_another_corpus_or_tokenizer_is_prepared_apart(
    data_config: MakeConfig, folder: Path, change: Callable[[Path, DataConfig], DataConfig]
) -> None:
    cfg = data_config(folder)
    before = prepare(cfg)
    after = prepare(change(folder, cfg))
    assert len(list(Path(cfg.cache_dir).iterdir())) == 2
    assert after.manifest != before.manifest


def test_window_and_batch_do_not_prepare_again(data_config: MakeConfig, folder: Path) -> None:
    cfg = data_config(folder)
    prepare(cfg)
    prepare(cfg.model_copy(update={"seq_len": 16, "batch_size": 2}))
    assert len(list(Path(cfg.cache_dir).iterdir())) == 1


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
@pytest.mark.parametrize("damage", ["truncated", "longer", "missing"])
def test_damaged_stream_is_named(
    data_config: MakeConfig, folder: Path, name: str, damage: str
) -> None:
    cfg = data_config(folder)
    prepare(cfg)
    path = prepared_folder(cfg) / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-2] if damage == "truncated" else content + b"\0\0")
    with pytest.raises(UserError) as caught:
        prepare(cfg)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "manifest.json"])
def test_truncated_json_is_named(data_config: MakeConfig, folder: Path, name: str) -> None:
    cfg = data_config(folder)
    prepare(cfg)
    path = prepared_folder(cfg) / name
    path.write_text(path.read_text()[:50])
    with pytest.raises(UserError) as caught:
        prepare(cfg)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_tokenizer_is_named(data_config: MakeConfig, folder: Path) -> None:
    cfg = data_config(folder)
    prepare(cfg)
    (prepared_folder(cfg) / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        prepare(cfg)


def test_leftover_of_an_interrupted_preparation_does_no_harm(
    data_config: MakeConfig, folder: Path
) -> None:
    cfg = data_config(folder)
    first = prepare(cfg)
    finished = prepared_folder(cfg)
    leftover = finished.with_name(f"{finished.name}.1.tmp")
    expected = PreparedData(np.array(first.train), np.array(first.val), *first[2:])
    finished.rename(leftover)
    (leftover / "train.bin").write_bytes(b"half")
    assert_same(prepare(cfg), expected)


def test_interrupted_preparation_is_not_taken_for_a_finished_one(
    data_config: MakeConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = data_config(folder)
    encode_batch = Tokenizer.encode_batch

    def interrupted(self: Tokenizer, texts: list[str]) -> list[list[int]]:
        encode_batch(self, texts)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(cfg)
    assert [p for p in Path(cfg.cache_dir).iterdir() if p.suffix != ".tmp"] == []
    data = prepare(cfg)
    assert len(data.train) == data.manifest["train"]["tokens"]


def test_another_process_may_finish_first(
    data_config: MakeConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = data_config(folder)
    expected = prepare(cfg)
    finished, aside = prepared_folder(cfg), Path(cfg.cache_dir).parent / "aside"
    finished.rename(aside)
    train = Tokenizer.train.__func__

    def slow(cls: type[Tokenizer], texts: object, *, vocab_size: int) -> Tokenizer:
        shutil.copytree(aside, finished)
        return train(cls, texts, vocab_size=vocab_size)

    monkeypatch.setattr(Tokenizer, "train", classmethod(slow))
    assert_same(prepare(cfg), expected)


def test_everything_held_out_is_refused(data_config: MakeConfig, folder: Path) -> None:
    with pytest.raises(UserError, match="val_fraction"):
        prepare(data_config(folder, val_fraction=1 - 1e-9))
