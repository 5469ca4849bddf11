"""One undisturbed run, which the others must end like."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.reliability.runs import checkpoint, run, short, state, write_corpus


class Reference(NamedTuple):
    words: tuple[str, ...]
    folder: Path
    end: dict[str, Any]
    """All of the last checkpoint."""


def undisturbed(words: tuple[str, ...], folder: Path) -> Reference:
    log = folder.with_suffix(".log")
    assert run([*words, f"run_dir={folder}"], log) == 0, log.read_text()
    return Reference(words, folder, state(checkpoint(folder, 12)))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def reference(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return undisturbed(short(corpus), tmp_path_factory.mktemp("reference") / "run")
