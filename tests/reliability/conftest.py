"""One undisturbed run, which the others must end like."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.reliability.runs import Corpus, checkpoint, run, short, state, write_corpus


class Reference(NamedTuple):
    corpus: Corpus
    words: tuple[str, ...]
    folder: Path
    end: dict[str, Any]
    """All of the last checkpoint."""


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def reference(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    place = tmp_path_factory.mktemp("reference") / "run"
    words, log = short(corpus), place.with_suffix(".log")
    assert run([*words, f"run_dir={place}"], log) == 0, log.read_text()
    return Reference(corpus, words, place, state(checkpoint(place, 12)))
