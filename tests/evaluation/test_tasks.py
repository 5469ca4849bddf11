"""Accuracies by hand, from a model that likes small ids."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mla_lm.evaluation import tasks
from mla_lm.evaluation.items import read_items
from mla_lm.evaluation.scoring import Request, Score
from mla_lm.evaluation.tasks import evaluate_task
from tests.generation.conftest import random_model
from tests.interop.random_runs import byte_tokenizer


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What each continuation is to be given instead of the model's likelihood, by its text."""
    by_text: dict[str, float] = {}

    def score(model: Any, requests: list[Request], **_: Any) -> list[Score]:
        texts = [byte_tokenizer().decode(request.continuation) for request in requests]
        return [Score(by_text[text], len(text), by_text[text] > -1) for text in texts]

    monkeypatch.setattr(tasks, "score", score)
    return by_text


def metrics(path: Path, *lines: dict[str, Any]) -> dict[str, float]:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return evaluate_task(random_model(), byte_tokenizer(), read_items(path), delimiter="")


def test_choices_by_likelihood_and_by_length(scored: dict[str, float], tmp_path: Path) -> None:
    scored |= {"aa": -3.0, "bbbbbb": -4.0, "c": -2.0}
    choices = {"query": "q", "choices": ["aa", "bbbbbb", "c"]}
    found = metrics(tmp_path / "x", choices | {"gold": 2}, choices | {"gold": 1})
    assert found["accuracy"] == 0.5  # c is likeliest, b by character
    assert found["accuracy_norm"] == 0.5
    assert found["accuracy_stderr"] == 0.5
    assert found["chance"] == pytest.approx(1 / 3)
    assert metrics(tmp_path / "x", choices | {"gold": 1})["accuracy_norm"] == 1.0
    assert metrics(tmp_path / "x", choices | {"gold": 0})["accuracy"] == 0.0


def test_continuations_by_greedy_choice_and_perplexity(
    scored: dict[str, float], tmp_path: Path
) -> None:
    scored |= {"aa": -0.5, "bbbb": -3.0}
    lines = [{"context": "q", "continuation": text} for text in scored]
    found = metrics(tmp_path / "x", *lines)
    assert found["accuracy"] == 0.5
    assert found["perplexity"] == pytest.approx(math.exp(3.5 / 6))
    assert found["chance"] == 0.0


def test_pairs_by_paradigm(scored: dict[str, float], tmp_path: Path) -> None:
    scored |= {"good": -1.0, "bad": -2.0, "worse": -0.5}
    lines = [
        {"sentence_good": "good", "sentence_bad": "bad", "paradigm": "x"},
        {"sentence_good": "good", "sentence_bad": "worse", "paradigm": "y"},
        {"sentence_good": "good", "sentence_bad": "bad", "paradigm": "y"},
    ]
    found = metrics(tmp_path / "x", *lines)
    assert (found["accuracy/x"], found["accuracy/y"]) == (1.0, 0.5)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["accuracy_stderr"] == pytest.approx(math.sqrt(2 / 9 / 2))
    assert found["chance"] == 0.5


def test_schemas_by_the_likelier_context(tmp_path: Path) -> None:
    model, tokenizer = random_model(), byte_tokenizer()
    likely = []
    for context in ("one", "other"):
        text = torch.tensor([[tokenizer.end_of_text, *tokenizer.encode(f"{context}end")]])
        with torch.no_grad():
            logits = model(text[:, :-1]).logits.log_softmax(-1)
        likely.append(float(logits.gather(2, text[:, 1:, None])[0, -3:].sum()))
    best = likely.index(max(likely))
    line = {"context_options": ["one", "other"], "continuation": "end"}
    assert metrics(tmp_path / "x", line | {"gold": best})["accuracy"] == 1.0
    assert metrics(tmp_path / "x", line | {"gold": 1 - best})["accuracy"] == 0.0


def test_what_was_cut_is_counted(tmp_path: Path) -> None:
    lines = [{"context": "x" * n, "continuation": "y"} for n in (5, 31, 32, 400)]
    found = metrics(tmp_path / "x", *lines)
    assert (found["n_items"], found["n_truncated"]) == (4, 2)
