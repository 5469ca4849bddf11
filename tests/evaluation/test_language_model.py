"""Metrics of a text: by hand, whatever the rows, the batches and their order; by position."""

import math
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mla_lm import Transformer
from mla_lm.data.batch import IGNORED, Annotator, Batch
from mla_lm.data.loader import EvalLoader
from mla_lm.evaluation.language_model import (
    _load_by_kind,
    by_position,
    evaluate,
    sliding_loss,
)
from mla_lm.model import ModelOutput, Routing, transformer
from mla_lm.objective.metrics import exact_matches, kept_drafts, loss_sums
from tests.conftest import ATTENTION, random_tokens, randomized, tiny_config
from tests.evaluation.conftest import LENGTH, N_DOCUMENTS, documents
from tests.generation.conftest import random_model
from tests.interop.random_runs import byte_tokenizer

TOKENIZER = byte_tokenizer()
BYTE_LENGTHS = torch.from_numpy(TOKENIZER.byte_lengths)


@cache
def annotator(*, masked: bool) -> Annotator:
    return Annotator(tiny_config(f"data.mask_documents={masked}").data, TOKENIZER)


def model_and_batches(*overrides: str) -> tuple[Transformer, list[Tensor], Tensor]:
    cfg = tiny_config(*overrides).model
    model = randomized(Transformer(cfg)).eval()
    batches = [random_tokens(cfg, 3, 17), random_tokens(cfg, 1, 9)]
    return model, batches, torch.arange(cfg.vocab_size) % 5


@pytest.mark.parametrize(("extra", "accepted"), [(0, True), (1, False), (-1, False)])
def test_acceptance_is_one_exactly_for_drafts_of_the_right_token(
    extra: int, accepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MTP states of depth k are replaced by the main model's own, k + extra positions later."""
    model, batches, byte_lengths = model_and_batches("model.mtp_depth=2")
    forward = model.forward

    def shifted(tokens: Tensor, documents: Tensor | None, logits: bool) -> ModelOutput:
        out = forward(tokens, documents=documents, logits=logits)
        mtp = tuple(out.hidden.roll(-extra, dims=1)[:, depth:] for depth in (1, 2))
        return out._replace(mtp=mtp)

    monkeypatch.setattr(model, "forward", shifted)
    metrics = evaluate(model, batches, byte_lengths, annotator(masked=False)).metrics
    for depth in (1, 2):
        assert (metrics[f"mtp/acceptance_{depth}"] == 1.0) == accepted


def test_drafts_count_inside_documents_and_for_graded_tokens() -> None:
    tokens = torch.arange(8)[None]  # the targets of depth 1 are 2 to 7
    ids = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])  # leaves out 3 and 4
    batch = Batch(tokens, tokens.where(tokens != 6, IGNORED), ids, None)
    greedy = tokens[:, 1:]  # for tokens 1 to 7
    drafts = greedy[:, 1:].clone()
    assert kept_drafts(drafts, greedy, batch, depth=1).tolist() == [3, 3]
    drafts[0, -1] = 0
    assert kept_drafts(drafts, greedy, batch, depth=1).tolist() == [2, 3]


def test_uniform_model_scores_the_logarithm_of_the_vocabulary() -> None:
    model, batches, byte_lengths = model_and_batches("model/ffn=dense", "model.mtp_depth=0")
    torch.nn.init.zeros_(model.lm_head.weight)
    found = evaluate(model, batches, byte_lengths, annotator(masked=False))
    lengths = [byte_lengths[batch[:, 1:]] for batch in batches]
    n_tokens, n_bytes = (
        sum(int(x.sum()) for x in xs) for xs in ([n > 0 for n in lengths], lengths)
    )
    vocab_size = model.cfg.vocab_size
    bits = math.log2(vocab_size) * n_tokens / n_bytes
    expected = {"val/loss": math.log(vocab_size), "val/perplexity": vocab_size, "val/bpb": bits}
    assert found.metrics == pytest.approx(expected, rel=1e-5)
    counts = (lengths[0] > 0).sum(0)
    counts[:8] += (lengths[1][0] > 0).int()  # the shorter row
    assert found.positions[:, 1].tolist() == counts.tolist()


def test_metrics_do_not_depend_on_how_many_logits_are_made_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batches, byte_lengths = model_and_batches()
    sizes: list[int] = []
    model.lm_head.register_forward_hook(lambda *args: sizes.append(args[2].numel()))
    found = []
    for most in (10**9, 1):
        monkeypatch.setattr(transformer, "LOGITS", most)
        metrics = evaluate(model, batches, byte_lengths, annotator(masked=False)).metrics
        found.append((metrics, max(sizes)))
        sizes.clear()
    (whole, all_at_once), (in_rows, a_row) = found
    assert whole.pop("moe/load") == in_rows.pop("moe/load")
    assert whole == pytest.approx(in_rows, rel=1e-6)
    assert all_at_once == len(batches[0]) * a_row > a_row


def test_evaluation_leaves_the_model_alone() -> None:
    model, batches, byte_lengths = model_and_batches()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, batches, byte_lengths, annotator(masked=False))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_exact_match_by_hand() -> None:
    """Answers of two and one tokens in the first row, of one at each end of the second."""
    i = IGNORED
    labels = torch.tensor([[i, 3, 4, i, 2], [1, i, i, i, 5]])
    guesses = torch.tensor([[9, 3, 4, 9, 2], [1, 9, 9, 9, 6]])
    for wrong in ([], [(0, 1)], [(0, 1), (0, 2)], [(0, 4)], [(1, 0), (0, 4)]):
        guessed = guesses.clone()
        for row, column in wrong:
            guessed[row, column] = 7
        answers = {(0, 1) if at == (0, 2) else at for at in wrong}
        right, n_answers = exact_matches(F.one_hot(guessed, 11).float(), labels)
        assert (int(right.sum()), int(n_answers.sum())) == (3 - len(answers), 4)


def test_ignored_labels_do_not_count() -> None:
    logits, labels = torch.randn(2, 5, 11), torch.randint(11, (2, 5))
    labels[0, :3] = labels[1, 4] = IGNORED
    nats, tokens, n_bytes, *_ = loss_sums(logits, labels, torch.arange(11)).sum(0).tolist()
    kept = labels.clamp(min=0) > 0  # the first id has no bytes
    expected = F.cross_entropy(logits[kept], labels[kept], reduction="sum")
    assert nats == pytest.approx(float(expected), rel=1e-6)
    assert (tokens, n_bytes) == (int(kept.sum()), int(labels[kept].sum()))


def test_load_by_kind_by_hand() -> None:
    experts = torch.tensor([[[0, 1], [1, 2], [0, 2]]])
    routing = (Routing(torch.rand(1, 3, 3), experts), Routing(torch.rand(1, 2, 3), experts[:, :2]))
    load = _load_by_kind(routing, torch.tensor([[1, -1, 1]]), 2)
    assert load.tolist() == [[[0, 0, 0]] * 2, [[2, 1, 1], [1, 1, 0]]]


def measured(
    attention: tuple[str, ...], *, seq_len: int, batch_size: int, seed: int
) -> tuple[float, float]:
    batches = list(EvalLoader(documents(), seq_len=seq_len, batch_size=batch_size))
    np.random.default_rng(seed).shuffle(batches)  # type: ignore[arg-type]
    found = evaluate(random_model(*attention), batches, BYTE_LENGTHS, annotator(masked=True))
    return found.metrics["val/bpb"], found.metrics["mtp/acceptance_1"]


@given(
    attention=st.sampled_from(list(ATTENTION.values())),
    seq_len=st.sampled_from([LENGTH, 2 * LENGTH, 4 * LENGTH]),
    batch_size=st.integers(1, N_DOCUMENTS + 2),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40)
def test_neither_rows_nor_batches_nor_their_order_matter(
    attention: tuple[str, ...], seq_len: int, batch_size: int, seed: int
) -> None:
    one = measured(attention, seq_len=LENGTH, batch_size=1, seed=0)
    other = measured(attention, seq_len=seq_len, batch_size=batch_size, seed=seed)
    assert other == pytest.approx(one, rel=2e-6)


def test_positions_by_hand() -> None:
    logits, labels = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    labels[0, 2] = IGNORED
    sums = loss_sums(logits, labels, torch.ones(7, dtype=torch.int64))
    likely = logits.log_softmax(-1)
    for t in range(5):
        rows = [b for b in range(2) if labels[b, t] != IGNORED]
        nats = -sum(float(likely[b, t, labels[b, t]]) for b in rows)
        assert sums[t, :3].tolist() == pytest.approx([nats, len(rows), len(rows)])


def test_ranges_double() -> None:
    sums = torch.tensor([[float(t), 1.0] for t in range(1, 12)])
    ranges = by_position(sums)
    assert [(first, last) for first, last, _ in ranges] == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 11)]
    assert [loss for *_, loss in ranges] == [1, 2, 3.5, 6.5, 10]
    assert by_position(torch.zeros(4, 2)) == []


@pytest.mark.parametrize("stride", [1, 3, 8, 32, 100])
@torch.no_grad()
def test_a_sliding_context_by_hand(stride: int) -> None:
    model = random_model()
    ids = np.random.default_rng(0).integers(1, 257, 75)  # the first id separates documents
    longest, nats = model.cfg.max_seq_len, 0.0
    step = min(stride, longest)
    for first in range(1, len(ids), step):
        after = len(ids[first : first + step])
        start = max(0, first - (longest + 1 - after))
        text = torch.from_numpy(ids[start : first + after])[None]
        likely = model(text[:, :-1]).logits.log_softmax(-1).gather(2, text[:, 1:, None])
        nats -= float(likely[0, -after:].sum())
    found = sliding_loss(model, ids, TOKENIZER, stride=stride)
    assert found["sliding/loss"] == pytest.approx(nats / 74, rel=1e-5)
    n_bytes = TOKENIZER.n_bytes(ids[1:].tolist())
    assert found["sliding/bpb"] == pytest.approx(nats / n_bytes / math.log(2), rel=1e-5)


@pytest.mark.parametrize("stride", [5, 32])
def test_documents_are_kept_apart_as_in_training(stride: int) -> None:
    model = random_model()
    ids = np.random.default_rng(0).integers(0, 256, model.cfg.max_seq_len + 1)
    ids[[4, 5, 20]] = TOKENIZER.end_of_text
    row = torch.from_numpy(ids)[None]
    wanted = evaluate(model, [row], BYTE_LENGTHS, annotator(masked=True)).metrics
    found = sliding_loss(model, ids, TOKENIZER, stride=stride, separator=TOKENIZER.end_of_text)
    assert found["sliding/loss"] == pytest.approx(wanted["val/loss"], rel=1e-5)
    joined = sliding_loss(model, ids, TOKENIZER, stride=stride)
    assert abs(joined["sliding/loss"] - wanted["val/loss"]) > 1e-3


@given(order=st.permutations(range(N_DOCUMENTS)), stride=st.integers(1, 24))
@settings(max_examples=20)
def test_a_sliding_context_does_not_see_the_order_of_documents(
    order: list[int], stride: int
) -> None:
    model = random_model()
    one, other = (
        sliding_loss(model, ids, TOKENIZER, stride=s, separator=TOKENIZER.end_of_text)
        for ids, s in ((documents(), 1), (documents(order), stride))
    )
    assert other["sliding/bpb"] == pytest.approx(one["sliding/bpb"], rel=2e-6)
