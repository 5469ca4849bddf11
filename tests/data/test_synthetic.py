"""Generated tasks: their length, their reproducibility, and answers that the context holds."""

import re
from typing import Any

import pytest
import torch

from mla_lm.data import Annotator, Tokenizer
from mla_lm.data.corpora import open_corpus
from tests.data.conftest import END_OF_TEXT, corpus_config, texts_of

TASKS = ("recall", "copying", "induction")
LENGTHS = (16, 17, 23, 64, 97, 200, 401)  # tokens

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


@each_task
def test_documents_follow_from_the_seed(task: str) -> None:
    first, again, other = (generated(task, data_seed=seed) for seed in (7, 7, 8))
    assert first == again
    assert not set(first) & set(other)
    assert len(set(first)) == 13


def test_tasks_do_not_share_their_randomness() -> None:
    letters = [re.sub(r"[^a-zA-Z]", "", generated(task)[0])[:9] for task in TASKS]
    assert len(set(letters)) == 3


@each_task
def test_more_documents_begin_with_the_fewer(task: str) -> None:
    assert generated(task, n_documents=29)[:13] == generated(task)


@each_task
def test_corpus_knows_its_size_and_its_length(task: str) -> None:
    corpora = [
        open_corpus(corpus_config("synthetic", task=task, n_documents=13, seq_len=length))
        for length in (31, 32)
    ]
    assert [corpus.n_bytes for corpus in corpora] == [13 * 31, 13 * 32]
    assert corpora[0].source != corpora[1].source
    assert corpora[0].val is None


@each_length
def test_recall_asks_for_every_pair_of_the_context(length: int) -> None:
    for text in generated("recall", seq_len=length):
        context, questions = taken_apart(text)
        pairs = dict(zip(context[::2], context[1::2], strict=True))
        assert len(pairs) == len(context) // 2 >= 2
        assert set(questions) == set(pairs.items())


def test_recall_asks_in_another_order() -> None:
    orders = set()
    for text in generated("recall", seq_len=64):
        context, questions = taken_apart(text)
        orders.add(tuple(context.index(key) for key, _ in questions))
    assert len(orders) == 13


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
def test_only_answers_are_graded(task: str) -> None:
    cfg = corpus_config("synthetic", task=task, seq_len=41)
    tokenizer = Tokenizer.train([], vocab_size=257, end_of_text=END_OF_TEXT)
    text = generated(task, seq_len=41)[0]
    tokens = torch.tensor([[tokenizer.end_of_text, *tokenizer.encode(text)]])
    labels = Annotator(cfg, tokenizer)(tokens).labels[0].tolist()
    graded = tokenizer.decode([label for label in labels if label >= 0])
    assert graded == "".join(re.findall("=([^;]+);", text))
