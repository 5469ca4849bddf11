"""A logit never depends on later tokens; MTP depth k reaches k tokens further and no more."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mla_lm.model import Routing, Transformer
from mla_lm.model import attention as attention_module
from mla_lm.model.mtp import MTPModule
from tests.conftest import each_attention, random_tokens, randomized, tiny_config

LENGTH = 9


def logits_of(model: Transformer, tokens: Tensor, depth: int) -> Tensor:
    """(B, T - depth, V): the main head for depth 0, else MTP module `depth`."""
    out = model(tokens)
    return model.lm_head(out.mtp[depth - 1]) if depth else out.logits


@torch.no_grad()
def check_by_perturbation(model: Transformer, depth: int) -> None:
    """Changing token j changes the logits from j - depth on, and none before."""
    tokens = random_tokens(model.cfg, 2, LENGTH)
    before = logits_of(model, tokens, depth)
    for j in range(LENGTH):
        changed = tokens.clone()
        changed[:, j] = (changed[:, j] + 1) % model.cfg.vocab_size
        difference = (logits_of(model, changed, depth) - before).abs().amax(dim=-1)
        first = max(0, j - depth)
        assert (difference[:, :first] < 1e-5).all(), f"token {j} leaks to an earlier position"
        assert (difference[:, first:] > 1e-4).all(), f"token {j} is not seen"


def check_by_gradient(model: Transformer, depth: int) -> None:
    """Logits at i have no gradient at all to embeddings after i + depth, and some to all others."""
    tokens = random_tokens(model.cfg, 2, LENGTH)
    embeddings = model.embed(tokens).detach().requires_grad_()
    model.embed.register_forward_hook(lambda *_: embeddings)
    logits = logits_of(model, tokens, depth)
    direction = torch.randn(model.cfg.vocab_size)
    for i in range(logits.shape[1]):
        (gradient,) = torch.autograd.grad(
            logits[:, i].mv(direction).sum(), embeddings, retain_graph=True
        )
        reach = gradient.abs().amax(dim=-1)  # (B, T)
        assert not reach[:, i + depth + 1 :].any(), f"logits at {i} depend on later tokens"
        assert (reach[:, : i + depth + 1] > 0).all(), f"logits at {i} miss earlier tokens"


def sees_everything(q: Tensor, k: Tensor, v: Tensor, mask: None, *, scale: float) -> Tensor:
    context = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True)
    return context.transpose(1, 2)


def sees_only_itself(q: Tensor, k: Tensor, v: Tensor, mask: None, *, scale: float) -> Tensor:
    return v.repeat_interleave(q.shape[1] // v.shape[1], dim=1).transpose(1, 2)


each_checker = pytest.mark.parametrize("check", [check_by_perturbation, check_by_gradient])
Checker = Callable[[Transformer, int], None]


def two_depths(*overrides: str) -> Transformer:
    return randomized(Transformer(tiny_config("model.mtp_depth=2", *overrides).model))


@each_checker
@pytest.mark.parametrize("depth", [0, 1, 2])
@each_attention
def test_no_logit_depends_on_later_tokens(
    attention: tuple[str, ...], depth: int, check: Checker
) -> None:
    check(two_depths(*attention), depth)


@each_checker
@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("fault", [sees_everything, sees_only_itself])
@each_attention
def test_a_wrong_mask_is_found(
    monkeypatch: pytest.MonkeyPatch,
    attention: tuple[str, ...],
    fault: Callable[..., Tensor],
    depth: int,
    check: Checker,
) -> None:
    monkeypatch.setattr(attention_module, "attend", fault)
    with pytest.raises(AssertionError):
        check(two_depths(*attention), depth)


@each_checker
@pytest.mark.parametrize("depth", [1, 2])
def test_an_mtp_shift_too_far_is_found(
    monkeypatch: pytest.MonkeyPatch, depth: int, check: Checker
) -> None:
    honest = MTPModule.forward

    def sees_the_next_token_too(
        self: MTPModule, hidden: Tensor, embedding: Tensor, *rest: Any
    ) -> tuple[Tensor, Routing | None]:
        return honest(self, hidden, embedding + embedding.roll(-1, dims=1), *rest)

    monkeypatch.setattr(MTPModule, "forward", sees_the_next_token_too)
    with pytest.raises(AssertionError, match=r"leaks|later"):
        check(two_depths(), depth)
