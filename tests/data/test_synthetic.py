"""Generated tasks: their length, their reproducibility, and answers that the context holds."""

import re
from pathlib import Path
from typing import Any

import pytest

from mla_lm.data import prepare
from mla_lm.data.batch import Annotator
from mla_lm.data.loader import EvalLoader
from tests.data.conftest import corpus_config, texts_of

TASKS = ("recall", "copying", "induction")
LENGTHS = (16, 17, 23, 64, 97, 401)  # tokens
each_task = pytest.mark.parametrize("task", TASKS)
each_length = pytest.mark.parametrize("length", LENGTHS)


def generated(task: str, **keys: Any) -> list[str]:
    """A few documents of a task."""
    return texts_of(corpus_config("synthetic", task=task, **{"n_documents": 13} | keys))


def taken_apart(text: str) -> tuple[str, list[tuple[str, str]]]:
    """The context, and the questions with their answers."""
    match = re.fullmatch(r"\.*([^.=;]*?)((?:[^.=;]=[^.=;];)+)", text)
    assert match is not None
    return match[1], re.findall(r"(.)=(.);", match[2])


@each_task
def test_every_length_works(task: str) -> None:
    for length in range(16, 201):
        found = generated(task, n_documents=3, seq_len=length)
        assert [len(text.encode()) for text in found] == [length - 1] * 3


def test_documents_follow_from_task_and_seed() -> None:
    letters = set()
    for task in TASKS:
        first, again, other = (generated(task, data_seed=seed) for seed in (7, 7, 8))
        assert first == again == generated(task, data_seed=7, n_documents=29)[:13]
        assert not set(first) & set(other)
        assert len(set(first)) == 13
        letters.add(re.sub(r"[^a-zA-Z]", "", first[0])[:9])
    assert len(letters) == 3


@each_length
def test_recall_asks_for_every_pair_of_the_context(length: int) -> None:
    orders = set()
    for text in generated("recall", seq_len=length):
        context, questions = taken_apart(text)
        pairs = dict(zip(context[::2], context[1::2], strict=True))
        assert len(pairs) == len(context) // 2 >= 2
        assert set(questions) == set(pairs.items())
        orders.add(tuple(context.index(key) for key, _ in questions))
    assert len(orders) == 13 or length < 64


@each_length
def test_induction_asks_what_followed_each_trigger(length: int) -> None:
    for text in generated("induction", seq_len=length):
        context, questions = taken_apart(text)
        followers = dict(re.findall(r"(\d)(\D)", context))
        assert sum(map(str.isdigit, context)) == len(followers) >= 1
        assert sorted(questions) == sorted(followers.items())


@each_length
def test_copying_answers_with_the_text(length: int) -> None:
    for text in generated("copying", seq_len=length):
        question, answer = text.lstrip(".").removesuffix(";").split("=")
        assert answer == question
        assert len(answer) == (length - 3) // 2
        assert answer.isalpha()


@each_task
def test_every_window_is_one_document_and_its_answers_are_graded(task: str, tmp_path: Path) -> None:
    keys = {"task": task, "n_documents": 50, "seq_len": 41, "cache_dir": tmp_path}
    cfg = corpus_config("synthetic", **keys)
    data = prepare(cfg)
    annotate = Annotator(cfg, data.tokenizer)
    for tokens in EvalLoader(data.train, seq_len=41, batch_size=7):
        assert (tokens[:, 0] == data.tokenizer.end_of_text).all()
        assert (tokens[:, 1:-1] != data.tokenizer.end_of_text).all()
        for row, labels in zip(tokens.tolist(), annotate(tokens).labels.tolist(), strict=True):
            graded = data.tokenizer.decode([label for label in labels if label >= 0])
            assert graded == "".join(re.findall("=([^;]+);", data.tokenizer.decode(row)))
