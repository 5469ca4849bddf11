"""Speculative greedy decoding is plain greedy decoding, whatever the drafts are."""

import random
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mla_lm.generation import Counts, Decoder, Sampling
from mla_lm.model import Transformer
from tests.conftest import each_attention
from tests.generation.conftest import (
    GREEDY,
    TRAINED_VOCAB,
    Ids,
    counting_prompts,
    decode,
    random_model,
    random_prompts,
)

CONTEXT = 32


@pytest.mark.parametrize("n_drafts", [1, 2, 3])
def test_drafts_that_are_mostly_right_change_nothing(trained: Transformer, n_drafts: int) -> None:
    """Up to the context's end, with rows of any length."""
    lengths = [random.Random(n_drafts).randint(1, CONTEXT) for _ in range(12)]
    others = random_prompts(lengths, below=TRAINED_VOCAB, seed=n_drafts)
    for prompts in (counting_prompts(lengths, seed=n_drafts), others):
        decoder = Decoder(
            trained, prompts, max_new_tokens=CONTEXT, sampling=GREEDY, n_drafts=n_drafts
        )
        got = decoder.run()
        assert got == decode(trained, prompts, CONTEXT)
        assert {len(p) + len(new) for p, new in zip(prompts, got, strict=True)} == {CONTEXT + 1}
        assert decoder.counts.accepted[0] > 0.4 * decoder.counts.drafted[0]


@pytest.mark.parametrize("n_new", [1, 2, 3, 4, 5])
def test_drafts_end_with_the_tokens_asked_for(trained: Transformer, n_new: int) -> None:
    prompts = counting_prompts((4, 9, 6), seed=n_new)
    decoder = Decoder(trained, prompts, max_new_tokens=n_new, sampling=GREEDY, n_drafts=3)
    got = decoder.run()
    assert got == decode(trained, prompts, n_new)
    assert decoder.counts.tokens == 3 * (n_new - 1)
    assert [n > 0 for n in decoder.counts.drafted] == [n_new > depth + 1 for depth in (1, 2, 3)]


@pytest.mark.parametrize("n_drafts", [1, 3])
@pytest.mark.parametrize("place", [0, 1, 2, 5])
def test_an_accepted_draft_may_be_the_stop_id(
    trained: Transformer, place: int, n_drafts: int
) -> None:
    """The rows count upwards and meet `stop` at different steps, the first row at `place`."""
    prompts = counting_prompts((4, 7, 5), seed=3)
    free = decode(trained, prompts, 12)
    stop = free[0][place]
    expected = [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in free]
    decoder = Decoder(
        trained, prompts, max_new_tokens=12, sampling=GREEDY, stop=stop, n_drafts=n_drafts
    )
    assert decoder.run() == expected
    assert decoder.counts.accepted[0] > 0


def follow_script(decoder: Decoder, expected: list[Ids], n_right: Callable[[int], int]) -> None:
    """Replace what is drafted: in a row the first `n_right(row)` tokens to come, then others."""
    drafter = decoder.drafter
    assert drafter is not None
    honest = drafter.propose

    def propose(
        tokens: Tensor, lengths: Sequence[int], sampling: Sampling, generator: torch.Generator
    ) -> Tensor:
        probabilities = honest(tokens, lengths, sampling, generator)
        for index, (row, length) in enumerate(zip(decoder.rows, lengths, strict=True)):
            wrong_from = length + n_right(row)
            for place in range(length, length + decoder.n_drafts):
                to_come = expected[row][place] if place < len(expected[row]) else 0
                tokens[index, place] = to_come if place < wrong_from else (to_come + 1) % 263
        drafts = [tokens[index, n : n + decoder.n_drafts] for index, n in enumerate(lengths)]
        return F.one_hot(torch.stack(drafts), probabilities.shape[-1]).float()

    drafter.propose = propose  # type: ignore[method-assign]


def check_script(
    prompts: list[Ids],
    n_drafts: int,
    n_right: Callable[[int], int],
    kind: Sequence[str] = ("model/ffn=dense",),
) -> Counts:
    model, n_new = random_model(*kind, mtp_depth=n_drafts), CONTEXT
    new = decode(model, prompts, n_new)
    expected = [prompt + ids for prompt, ids in zip(prompts, new, strict=True)]
    decoder = Decoder(model, prompts, max_new_tokens=n_new, sampling=GREEDY, n_drafts=n_drafts)
    follow_script(decoder, expected, n_right)
    assert decoder.run() == new
    return decoder.counts


@pytest.mark.parametrize("ffn", ["moe", "dense"])
@each_attention
def test_any_pattern_of_right_and_wrong_drafts_changes_nothing(
    attention: tuple[str, ...], ffn: str
) -> None:
    rng = random.Random(0)
    prompts = random_prompts(rng.choices(range(1, CONTEXT - 4), k=6), seed=1)
    kind = (*attention, f"model/ffn={ffn}")
    counts = check_script(prompts, 2, lambda row: rng.randint(0, 2), kind)
    assert all(n > 10 for n in counts.accepted)


@pytest.mark.parametrize("n_drafts", [1, 4])
def test_rows_drift_apart_at_the_context_end(n_drafts: int) -> None:
    """One accepts all drafts, one all but one, one none; the last two stand `spare` from the end.

    The one ahead stops the drafts for all when it fills the context; they go on when it has ended.
    """
    for spare in range(1, 6):
        prompts = random_prompts((5, CONTEXT - spare, CONTEXT - spare), seed=spare)
        check_script(prompts, n_drafts, lambda row: (n_drafts, n_drafts - 1, 0)[row])
