"""Speculative sampling emits what plain sampling does, by distribution: over thousands of rows.

The exact distribution comes from the model without a cache. Thresholds are Pearson's test: an
honest decoder stays above 1e-3 (the seeds are fixed), the faults planted below fall under 1e-9
or emit what cannot come.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mla_lm.generation import Decoder, Sampling, sampling
from mla_lm.generation.drafting import Drafter
from mla_lm.generation.sampling import accept, distribution, draw
from mla_lm.model import Transformer
from tests.generation.conftest import chi_square, random_model

V = 6
PROMPTS = [[1, 3, 2], [4]]
ROWS = 800  # of each prompt
N_NEW = 4
WINDOW = 3  # tokens whose joint distribution is tested
HOW = Sampling(1.2, top_k=4, top_p=0.9)


def model_of(n_drafts: int = 2, *, attention: str = "mla") -> Transformer:
    words = (f"model/attention={attention}", "model/ffn=dense")
    return random_model(*words, n_layers=1, mtp_depth=max(1, n_drafts), vocab_size=V)


@torch.no_grad()
def exact(model: Transformer, prompt: list[int], how: Sampling) -> Tensor:
    """The joint distribution of the first `N_NEW` new tokens: (V, ..., V)."""
    texts, shares = torch.tensor([prompt]), torch.ones(1, dtype=torch.float64)
    for _ in range(N_NEW):
        following = distribution(model(texts, mtp=False).logits[:, -1], how).double()
        shares = (shares.unsqueeze(1) * following).flatten()
        ids = torch.arange(V).repeat(len(texts)).unsqueeze(1)
        texts = torch.cat((texts.repeat_interleave(V, dim=0), ids), dim=1)
    return shares.view([V] * N_NEW)


def sampled(
    model: Transformer,
    how: Sampling,
    n_drafts: int,
    change: Callable[[Decoder], None] = lambda decoder: None,
) -> list[Tensor]:
    """For each prompt the first new tokens of its rows (ROWS, N_NEW), decoded in one batch."""
    decoder = Decoder(
        model, PROMPTS * ROWS, max_new_tokens=28, sampling=how, n_drafts=n_drafts, seed=1
    )
    change(decoder)
    texts: list[list[int]] = [[] for _ in decoder.rows]
    for new in decoder:
        for row, ids in new.items():
            texts[row] += ids
        if min(map(len, texts)) >= N_NEW:
            break
    everything = torch.tensor([text[:N_NEW] for text in texts])
    return [everything[i :: len(PROMPTS)] for i in range(len(PROMPTS))]


def check_follows_model(model: Transformer, how: Sampling, n_drafts: int, **change: Any) -> None:
    """Every window of the new tokens: the first is the prompt's and a step's, the last of steps."""
    for prompt, rows in zip(PROMPTS, sampled(model, how, n_drafts, **change), strict=True):
        joint = exact(model, prompt, how)
        for start in range(N_NEW - WINDOW + 1):
            kept = range(start, start + WINDOW)
            shares = joint.sum(dim=[place for place in range(N_NEW) if place not in kept])
            first, second, third = rows[:, start : start + WINDOW].unbind(dim=1)
            places = (first * V + second) * V + third
            p_value = chi_square(places.bincount(minlength=V**WINDOW), shares.flatten())
            assert p_value > 1e-3, f"{p_value}, from new token {start} on"


@pytest.mark.parametrize("n_drafts", [0, 1, 2, 3])
def test_new_tokens_follow_the_model(n_drafts: int) -> None:
    check_follows_model(model_of(n_drafts), HOW, n_drafts)


@pytest.mark.parametrize(
    "how",
    [Sampling(), Sampling(1.5, min_p=0.2)],
    ids=str,
)
def test_each_option_holds_with_drafts(how: Sampling) -> None:
    check_follows_model(model_of(), how, 2)


def test_other_attention_holds_with_drafts() -> None:
    check_follows_model(model_of(attention="gqa"), HOW, 2)


def test_some_drafts_are_kept_and_some_are_not() -> None:
    """Or the tests here would test plain sampling."""
    decoder = Decoder(model_of(), PROMPTS * 50, max_new_tokens=20, sampling=HOW, n_drafts=2)
    for _ in decoder:
        pass
    first, second = decoder.counts.accepted
    assert 0.2 < first / decoder.counts.drafted[0] < 0.95
    assert 0.2 < second / first < 0.95


def always(p: Tensor, q: Tensor, ids: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.full((len(ids),), ids.shape[1]), draw(p[:, -1], source)


def replaced_from_target(
    p: Tensor, q: Tensor, ids: Tensor, source: torch.Generator
) -> tuple[Tensor, Tensor]:
    n_kept, _ = accept(p, q, ids, source)
    return n_kept, draw(p[torch.arange(len(ids)), n_kept], source)


def fails(**change: Any) -> None:
    with pytest.raises(AssertionError):
        check_follows_model(model_of(), HOW, 2, **change)


@pytest.mark.parametrize("wrong", [always, replaced_from_target])
def test_wrong_acceptance_is_found(
    monkeypatch: pytest.MonkeyPatch,
    wrong: Callable[[Tensor, Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]],
) -> None:
    monkeypatch.setattr(sampling, "accept", wrong)
    fails()


def test_a_cache_that_is_not_cut_is_found() -> None:
    def keep_all(decoder: Decoder) -> None:
        decoder.cache.truncate = lambda lengths: None  # type: ignore[method-assign]

    fails(change=keep_all)


def test_distributions_other_than_those_drawn_from_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = Drafter.propose

    def hotter(
        self: Drafter, tokens: Tensor, lengths: Sequence[int], how: Sampling, source: Any
    ) -> Tensor:
        return honest(self, tokens, lengths, how, source).sqrt()

    monkeypatch.setattr(Drafter, "propose", hotter)
    fails()


def test_sampling_of_one_row_is_not_that_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows mixed up when their tokens are drawn, as a wrong `reorder` would."""

    def mixed(p: Tensor, q: Tensor, ids: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor]:
        n_kept, following = accept(p, q, ids, source)
        return n_kept, following.roll(1)

    monkeypatch.setattr(sampling, "accept", mixed)
    fails()
