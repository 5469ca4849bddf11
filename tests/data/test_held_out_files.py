"""Files to validate on: however they are spelled, they are not trained on."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mla_lm.data.corpora import open_corpus
from tests.data.conftest import refusal, write_folder
from tests.data.text_files import TWELVE, names, source, text


def as_it_is(path: Path) -> str:
    return str(path)


def relative(path: Path) -> str:
    return os.path.relpath(path)


def roundabout(path: Path) -> str:
    return f"{path.parent}/../{path.parent.name}/./{path.name}"


def linked(path: Path) -> str:
    link = path.parent.parent / "link.txt"
    link.symlink_to(path)
    return str(link)


def through_a_linked_folder(path: Path) -> str:
    link = path.parent.parent / "link"
    link.symlink_to(path.parent)
    return str(link / path.name)


@pytest.mark.parametrize(
    "spelled", [as_it_is, relative, roundabout, linked, through_a_linked_folder]
)
def test_files_to_validate_on_are_left_out_of_training(
    folder: Path, spelled: Callable[[Path], str]
) -> None:
    cfg = text(folder, val_path=spelled(folder / "05.txt"))
    corpus = open_corpus(cfg)
    assert names(cfg) == [name for name in TWELVE if name != "05.txt"]
    assert corpus.val is not None
    held_out = ["".join(document.parts) for document in corpus.val()]
    assert "".join(held_out) == (folder / "05.txt").read_text()
    assert corpus.n_bytes == open_corpus(text(folder)).n_bytes


def test_files_to_validate_on_are_documents_as_those_to_train_on(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_text("a line\n\n" * 3000)
    corpus = open_corpus(text(folder, val_path=folder / "03.txt"))
    assert corpus.val is not None
    assert (len(list(corpus.train())), len(list(corpus.val()))) == (11, 1)
    alone = open_corpus(text(folder / "00.txt", val_path=folder / "03.txt"))
    assert alone.val is not None
    assert (len(list(alone.train())), len(list(alone.val()))) == (6, 6)


def test_a_link_to_a_held_out_file_is_held_out(folder: Path, tmp_path: Path) -> None:
    (folder / "again.txt").symlink_to("05.txt")
    (tmp_path / "link").symlink_to(folder)
    for path in (folder, tmp_path / "link"):
        cfg = text(path, val_path=folder / "05.txt")
        assert names(cfg) == [name for name in TWELVE if name != "05.txt"]


def test_files_to_validate_on_may_be_a_glob_or_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    assert names(text(folder, val_path=folder / "0*.txt")) == TWELVE[10:]
    other = write_folder(tmp_path / "other", n_documents=2)
    assert names(text(folder, val_path=other)) == TWELVE


@pytest.mark.parametrize("val_path", ["", "*.txt"])
def test_holding_out_every_file_is_refused(folder: Path, val_path: str) -> None:
    assert "data.val_path" in refusal(text(folder, val_path=folder / val_path))


def test_missing_files_to_validate_on_are_named(folder: Path, tmp_path: Path) -> None:
    said = refusal(text(folder, val_path=tmp_path / "none"))
    assert f"data.val_path={tmp_path / 'none'}" in said


def test_source_tells_training_from_validation_files(folder: Path) -> None:
    sources = [open_corpus(text(folder, val_path=folder / name)).source for name in TWELVE[:2]]
    assert sources[0] != sources[1]
    assert sources[0] != source(folder)
