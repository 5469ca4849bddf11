"""Who is held out, whatever stands beside it, and who has not seen it."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from mla_lm.data import Tokenizer, head, prepare
from tests.data.conftest import END_OF_TEXT, MakeConfig, some_text, write_folder, write_rows
from tests.data.splits import documents, file_texts, split_of


def test_tokenizer_has_not_seen_the_validation_split(
    quick_config: MakeConfig, folder: Path
) -> None:
    texts = file_texts(folder)
    found = prepare(quick_config(folder)).tokenizer.json
    for seen, same in ((split_of(texts, 0.2)["train"], True), (list(texts.values()), False)):
        trained = Tokenizer.train(seen, vocab_size=300, end_of_text=END_OF_TEXT).json
        assert (found == trained) is same


def test_the_head_decides_what_the_tokenizer_learns(
    quick_config: MakeConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "HEAD", 700)
    data = prepare(quick_config(folder, val_fraction=0.5))
    train = split_of(file_texts(folder), 0.5)["train"]
    n_read = next(n for n in range(len(train)) if sum(map(len, train[:n])) >= 700)
    assert n_read < len(train)
    trained = Tokenizer.train(train[:n_read], vocab_size=300, end_of_text=END_OF_TEXT)
    assert data.tokenizer.json == trained.json
    assert documents(data, "train") == train


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
    expected = {k: t for k, t in file_texts(folder).items() if k != "03.txt"}
    assert documents(data, "train") == list(expected.values())
    assert "".join(documents(data, "val")) == held_out.read_text()
    assert data.manifest["threshold"] == 0


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


def test_write_folder_has_documents_for_both_splits(tmp_path: Path) -> None:
    """The tests that prepare one would show nothing were one of them empty."""
    parts = split_of(file_texts(write_folder(tmp_path / "text")), 0.2)
    assert len(parts["val"]) > 1
    assert len(parts["train"]) > 5
