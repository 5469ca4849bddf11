"""Speculative sampling emits what plain sampling does, by distribution: over thousands of rows.

The exact distribution comes from the model without a cache. Thresholds are Pearson's test: an
honest decoder stays above 1e-3 (the seeds are fixed), the faults planted below fall under 1e-9
or emit what cannot come.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mla_lm.generation import Decoder, Sampling, speculation
from mla_lm.generation.sampling import distribution, draw
from mla_lm.generation.speculation import Drafter, accept
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


def check_follows_model(model: Transformer, how: Sampling, n_drafts: int) -> Decoder:
    """Every window of the new tokens: the first is the prompt's and a step's, the last of steps."""
    decoder = Decoder(
        model, PROMPTS * ROWS, max_new_tokens=28, sampling=how, n_drafts=n_drafts, seed=1
    )
    texts: list[list[int]] = [[] for _ in decoder.rows]
    for new in decoder:
        for row, ids in new.items():
            texts[row] += ids
        if min(map(len, texts)) >= N_NEW:
            break
    everything = torch.tensor([text[:N_NEW] for text in texts])
    for index, prompt in enumerate(PROMPTS):
        rows, joint = everything[index :: len(PROMPTS)], exact(model, prompt, how)
        for start in range(N_NEW - WINDOW + 1):
            inside = range(start, start + WINDOW)
            shares = joint.sum(dim=[place for place in range(N_NEW) if place not in inside])
            first, second, third = rows[:, start : start + WINDOW].unbind(dim=1)
            places = (first * V + second) * V + third
            p_value = chi_square(places.bincount(minlength=V**WINDOW), shares.flatten())
            assert p_value > 1e-3, f"{p_value}, from new token {start} on"
    return decoder


@pytest.mark.parametrize(
    ("n_drafts", "how", "attention"),
    [(0, HOW, "mla"), (1, HOW, "gqa"), (2, Sampling(1.5, min_p=0.2), "mla"), (3, HOW, "mla")],
)
def test_new_tokens_follow_the_model(n_drafts: int, how: Sampling, attention: str) -> None:
    decoder = check_follows_model(model_of(n_drafts, attention=attention), how, n_drafts)
    assert all(0.1 < share < 0.95 for share in decoder.counts.acceptance)  # else nothing is tested


Tensors = tuple[Tensor, Tensor]
Source = torch.Generator
honest = Drafter.propose


def always(p: Tensor, q: Tensor, ids: Tensor, source: Source) -> Tensors:
    return torch.full((len(ids),), ids.shape[1]), draw(p[:, -1], source)


def replaced_from_target(p: Tensor, q: Tensor, ids: Tensor, source: Source) -> Tensors:
    n_accepted, _ = accept(p, q, ids, source)
    return n_accepted, draw(p[torch.arange(len(ids)), n_accepted], source)


def mixed_rows(p: Tensor, q: Tensor, ids: Tensor, source: Source) -> Tensors:
    """As a wrong `reorder` would."""
    n_accepted, following = accept(p, q, ids, source)
    return n_accepted, following.roll(1)


def hotter(self: Drafter, *rest: Any) -> Tensor:
    """Other distributions than the drafts were drawn from."""
    return honest(self, *rest).sqrt()


@pytest.mark.parametrize(
    ("owner", "name", "wrong"),
    [
        (speculation, "accept", always),
        (speculation, "accept", replaced_from_target),
        (speculation, "accept", mixed_rows),
        (Drafter, "propose", hotter),
    ],
)
def test_wrong_acceptance_is_found(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, wrong: Callable[..., Any]
) -> None:
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(AssertionError):
        check_follows_model(model_of(), HOW, 2)


def test_where_rounding_leaves_no_residual_the_target_is_drawn_from() -> None:
    p, q, n = torch.tensor([0.0, 0.4, 0.6]), torch.tensor([0.4, 0.4, 0.6]), 100
    ids = torch.zeros(n, 1, dtype=torch.int64)
    n_accepted, following = accept(
        p.expand(n, 2, 3), q.expand(n, 1, 3), ids, torch.Generator().manual_seed(0)
    )
    assert not n_accepted.any()
    assert set(following.tolist()) == {1, 2}
