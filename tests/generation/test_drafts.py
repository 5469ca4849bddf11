"""Drafts are what the MTP modules predict on the same text; acceptance is what the counts say.

That speculation changes no output proves nothing about the drafts: any would do.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from mla_lm.generation import Counts, Decoder, Sampling
from mla_lm.generation.sampling import distribution
from mla_lm.generation.speculation import Drafter
from mla_lm.model import Transformer
from mla_lm.model.cache import Cache
from tests.conftest import each_attention
from tests.generation.conftest import (
    GREEDY,
    TRAINED_VOCAB,
    Ids,
    counting_prompts,
    padded,
    random_model,
    random_prompts,
)

SAMPLED = Sampling(1.3, top_k=30, top_p=0.95)
LENGTHS = (6, 1, 11, 2)


class Step(NamedTuple):
    """One row in one step after the prompt."""

    text: Ids  # before the step
    drafts: Ids
    probabilities: Tensor  # (D, V) that they were drawn from
    emitted: Ids


def record(
    model: Transformer,
    prompts: Sequence[Ids],
    *,
    n_drafts: int,
    n_steps: int = 4,
    sampling: Sampling = GREEDY,
) -> tuple[list[Step], Counts]:
    """Decode some steps, without an end in reach, and note what comes and goes."""
    decoder = Decoder(model, prompts, max_new_tokens=100, sampling=sampling, n_drafts=n_drafts)
    found = [list(step.values()) for step in islice(watched(decoder, prompts), n_steps + 1)]
    return [step for rows in found for step in rows], decoder.counts


def watched(decoder: Decoder, prompts: Sequence[Ids]) -> Iterator[dict[int, Step]]:
    """Decode, and give each step by row; the prompts' own gives none."""
    drafter = decoder.drafter
    assert drafter is not None
    honest = drafter.propose
    proposed: list[tuple[Ids, Tensor]] = []

    def propose(
        tokens: Tensor, lengths: Sequence[int], sampling: Sampling, generator: torch.Generator
    ) -> Tensor:
        probabilities = honest(tokens, lengths, sampling, generator)
        written = (tokens[i, n : n + decoder.n_drafts].tolist() for i, n in enumerate(lengths))
        proposed[:] = zip(written, probabilities, strict=True)
        return probabilities

    drafter.propose = propose  # type: ignore[method-assign]
    texts = [list(prompt) for prompt in prompts]
    for emitted in decoder:
        rows = zip(proposed, emitted.items(), strict=True) if proposed else ()
        steps = {row: Step(list(texts[row]), *drafts, ids) for drafts, (row, ids) in rows}
        for row, ids in emitted.items():
            texts[row] += ids
        yield steps


@torch.no_grad()
def check_drafts(model: Transformer, steps: list[Step], sampling: Sampling = GREEDY) -> None:
    """Teacher-forced: depth k at the newest position of the text with its drafts behind it.

    That is all that depth k may rest on there: the text, and the drafts of the depths before.
    """
    mtp = model(padded([step.text + step.drafts[:-1] for step in steps])).mtp
    for index, step in enumerate(steps):
        newest = len(step.text) - 2
        for depth, draft in enumerate(step.drafts, start=1):
            logits = model.lm_head(mtp[depth - 1][index, newest])
            expected, found = distribution(logits, sampling), step.probabilities[depth - 1]
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
            assert sampling != GREEDY or draft == logits.argmax()
            assert expected[draft] > 0


def check_acceptance(steps: list[Step], counts: Counts, n_drafts: int) -> None:
    """A draft is accepted exactly when it is what is emitted there; the counts say the same."""
    accepted = [0] * n_drafts
    for step in steps:
        same = [draft == new for draft, new in zip(step.drafts, step.emitted, strict=False)]
        n_accepted = [*same, False].index(False)
        assert len(step.emitted) == n_accepted + 1
        for depth in range(n_accepted):
            accepted[depth] += 1
    n_tokens = sum(len(step.emitted) for step in steps)
    assert counts == Counts([len(steps)] * n_drafts, accepted, len(steps), n_tokens)
    assert counts.tokens_per_step == n_tokens / len(steps)
    assert counts.acceptance == [n / len(steps) for n in accepted]


each_sampling = pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])


@each_sampling
@pytest.mark.parametrize("mtp_input", ["post_norm", "pre_norm"])
@each_attention
def test_drafts_are_what_the_modules_predict(
    attention: tuple[str, ...], mtp_input: str, sampling: Sampling
) -> None:
    model = random_model(*attention, mtp_depth=2, mtp_input=mtp_input, max_seq_len=48)
    prompts = random_prompts(LENGTHS, seed=1)
    steps, counts = record(model, prompts, n_drafts=2, sampling=sampling)
    check_drafts(model, steps, sampling)
    check_acceptance(steps, counts, 2)


@each_sampling
@pytest.mark.parametrize("n_drafts", [1, 3])
def test_drafts_that_are_mostly_right_are_what_the_modules_predict(
    trained: Transformer, n_drafts: int, sampling: Sampling
) -> None:
    prompts = counting_prompts(LENGTHS) + random_prompts(LENGTHS, below=TRAINED_VOCAB)
    steps, counts = record(trained, prompts, n_drafts=n_drafts, sampling=sampling)
    check_drafts(trained, steps, sampling)
    check_acceptance(steps, counts, n_drafts)
    assert {0, n_drafts} <= {len(step.emitted) - 1 for step in steps}


def test_drafts_are_the_same_after_other_rows_have_ended(trained: Transformer) -> None:
    prompts = counting_prompts(LENGTHS)
    decoder = Decoder(trained, prompts, max_new_tokens=100, sampling=GREEDY, n_drafts=2)
    for n_done, steps in enumerate(watched(decoder, prompts)):
        if n_done:
            check_drafts(trained, list(steps.values()))
        if n_done == 2:
            decoder.finish(0)
            decoder.finish(2)
        if n_done == 5:
            break
    assert sorted(steps) == [1, 3]


def stores_one_too_late(patch: pytest.MonkeyPatch) -> None:
    honest = Drafter.store
    late = lambda self, x, starts: honest(self, x, [n + (n > 0) for n in starts])  # noqa: E731
    patch.setattr(Drafter, "store", late)


def shifts_the_embedding(patch: pytest.MonkeyPatch) -> None:
    honest = Transformer.mtp_step
    patch.setattr(
        Transformer,
        "mtp_step",
        lambda self, k, x, ids, cache: honest(self, k, x, ids.roll(1, dims=1), cache=cache),
    )


def keeps_rejected_drafts(patch: pytest.MonkeyPatch, *, n_layers: int) -> None:
    """In the main cache (of two layers) or in those of the drafts."""
    honest = Cache.truncate
    patch.setattr(
        Cache,
        "truncate",
        lambda self, lengths: None if len(self.layers) == n_layers else honest(self, lengths),
    )


@pytest.mark.parametrize(
    "fault",
    [
        stores_one_too_late,
        shifts_the_embedding,
        partial(keeps_rejected_drafts, n_layers=2),
        partial(keeps_rejected_drafts, n_layers=1),
    ],
)
def test_drafts_from_a_wrong_state_are_found(
    trained: Transformer,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[pytest.MonkeyPatch], None],
) -> None:
    """Though the text is the same: speculation is lossless with any drafts."""

    def steps() -> list[Step]:
        prompts = random_prompts((6,), below=TRAINED_VOCAB, seed=2)
        return record(trained, prompts, n_drafts=3, n_steps=5, sampling=SAMPLED)[0]

    check_drafts(trained, steps(), SAMPLED)
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check_drafts(trained, steps(), SAMPLED)
