"""Loss by position adds up to the loss; a sliding context reads every token once."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_lm.data.batch import IGNORED, Annotator
from mla_lm.evaluation.language_model import by_position, evaluate, position_sums, sliding_loss
from mla_lm.evaluation.scoring import window
from tests.conftest import tiny_config
from tests.evaluation.conftest import N_DOCUMENTS, documents
from tests.generation.conftest import random_model
from tests.interop.random_runs import byte_tokenizer


def test_positions_by_hand() -> None:
    logits, labels = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    labels[0, 2] = IGNORED
    sums = position_sums(logits, labels)
    likely = logits.log_softmax(-1)
    for t in range(5):
        rows = [b for b in range(2) if labels[b, t] != IGNORED]
        nats = -sum(float(likely[b, t, labels[b, t]]) for b in rows)
        assert sums[t].tolist() == pytest.approx([nats, len(rows)])


def test_ranges_double() -> None:
    sums = torch.tensor([[float(t), 1.0] for t in range(1, 12)])
    ranges = by_position(sums)
    assert [(first, last) for first, last, _ in ranges] == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 11)]
    assert [loss for *_, loss in ranges] == [1, 2, 3.5, 6.5, 10]
    assert by_position(torch.zeros(4, 2)) == []


@pytest.mark.parametrize("stride", [1, 3, 8, 32, 100])
@torch.no_grad()
def test_a_sliding_context_by_hand(stride: int) -> None:
    model, tokenizer = random_model(), byte_tokenizer()
    ids = np.random.default_rng(0).integers(0, 257, 75)
    longest, nats = model.cfg.max_seq_len, 0.0
    step = min(stride, longest)
    for first in range(1, len(ids), step):
        after = len(ids[first : first + step])
        start = max(0, first - (longest + 1 - after))
        text = torch.from_numpy(ids[start : first + after])[None]
        likely = model(text[:, :-1]).logits.log_softmax(-1).gather(2, text[:, 1:, None])
        nats -= float(likely[0, -after:].sum())
    found = sliding_loss(model, ids, tokenizer, stride=stride)
    assert found["sliding/loss"] == pytest.approx(nats / 74, rel=1e-5)
    n_bytes = tokenizer.n_bytes(ids[1:].tolist())
    assert found["sliding/bpb"] == pytest.approx(nats / n_bytes / math.log(2), rel=1e-5)


def test_every_token_comes_once_with_all_the_context_that_fits() -> None:
    ids = np.arange(50)
    for stride in (1, 4, 7):
        found = [r for i in range(1, 50, stride) for r in window(ids, i, stride, longest=10)]
        assert [i for request in found for i in request.continuation] == list(range(1, 50))
        for request in found:
            text = [*request.context, *request.continuation]
            assert text == list(range(text[0], text[-1] + 1))
            assert len(text) == 11 or text[0] == 0


@pytest.mark.parametrize("stride", [5, 32])
def test_documents_are_kept_apart_as_in_training(stride: int) -> None:
    model, tokenizer = random_model(), byte_tokenizer()
    ids = np.random.default_rng(0).integers(0, 256, model.cfg.max_seq_len + 1)
    ids[[4, 5, 20]] = tokenizer.end_of_text
    annotate = Annotator(tiny_config("data.mask_documents=true").data, tokenizer)
    byte_lengths = torch.from_numpy(tokenizer.byte_lengths)
    wanted = evaluate(model, [torch.from_numpy(ids)[None]], byte_lengths, annotate).metrics
    found = sliding_loss(model, ids, tokenizer, stride=stride, separator=tokenizer.end_of_text)
    assert found["sliding/loss"] == pytest.approx(wanted["val/loss"], rel=1e-5)
    joined = sliding_loss(model, ids, tokenizer, stride=stride)
    assert abs(joined["sliding/loss"] - wanted["val/loss"]) > 1e-3


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_rows_that_are_shorter_add_to_the_first_positions(order: tuple[int, int]) -> None:
    model, tokenizer = random_model(), byte_tokenizer()
    batches = [torch.randint(256, (3, 10)), torch.randint(256, (1, 5))]
    annotate = Annotator(tiny_config().data, tokenizer)
    byte_lengths = torch.from_numpy(tokenizer.byte_lengths)
    found = evaluate(model, [batches[i] for i in order], byte_lengths, annotate)
    assert found.positions[:, 1].tolist() == [4.0] * 4 + [3.0] * 5


@given(order=st.permutations(range(N_DOCUMENTS)), stride=st.integers(1, 24))
@settings(max_examples=20)
def test_a_sliding_context_does_not_see_the_order_of_documents(
    order: list[int], stride: int
) -> None:
    model, tokenizer = random_model(), byte_tokenizer()
    one, other = (
        sliding_loss(model, ids, tokenizer, stride=s, separator=tokenizer.end_of_text)
        for ids, s in ((documents(), 1), (documents(order), stride))
    )
    assert other["sliding/bpb"] == pytest.approx(one["sliding/bpb"], rel=2e-6)
