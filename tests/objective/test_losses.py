import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mla_lm.data.batch import IGNORED
from mla_lm.model import Routing
from mla_lm.objective import losses
from mla_lm.objective.losses import (
    head_loss,
    mtp_targets,
    next_token_loss,
    sequence_balance_loss,
    switch_balance_loss,
)


def routing_of(scores: Tensor, top_k: int) -> Routing:
    return Routing(scores, scores.topk(top_k, dim=-1).indices)


def cyclic_scores(n_experts: int, batch: int = 2) -> Tensor:
    """Token t favours expert t, then t + 1, ...: every expert is favoured equally often."""
    base = torch.linspace(0.9, 0.1, n_experts)
    rows = torch.stack([base.roll(t) for t in range(n_experts)])
    return rows.expand(batch, -1, -1).clone()


def test_next_token_loss_by_hand() -> None:
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0]]])
    loss = next_token_loss(logits, torch.tensor([[1, 0]]))
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def test_mtp_targets_by_hand() -> None:
    tokens = torch.tensor([[10, 11, 12, 13, 14]])
    assert mtp_targets(tokens, 1).tolist() == [[12, 13, 14]]
    assert mtp_targets(tokens, 2).tolist() == [[13, 14]]
    documents = torch.tensor([[1, 1, 1, 2, 2]])
    assert mtp_targets(tokens, 1, documents).tolist() == [[12, IGNORED, IGNORED]]
    assert mtp_targets(tokens, 2, documents).tolist() == [[IGNORED] * 2]


def test_ignored_targets_do_not_count() -> None:
    logits, targets = torch.randn(2, 3, 7), torch.randint(7, (2, 3))
    ignored = targets.clone()
    ignored[0, 1] = ignored[1, 2] = IGNORED
    counted = ignored != IGNORED
    expected = next_token_loss(logits[counted], targets[counted])
    torch.testing.assert_close(next_token_loss(logits, ignored), expected)
    assert not torch.isclose(next_token_loss(logits, targets), expected)


@pytest.mark.parametrize("loss", [sequence_balance_loss, switch_balance_loss])
@given(st.integers(2, 9), st.data())
def test_a_balance_loss_is_one_at_perfect_balance(
    loss: Callable[..., Tensor], n_experts: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, n_experts))
    value = loss(routing_of(cyclic_scores(n_experts), top_k))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(1, abs=1e-6)


def test_the_sequence_loss_is_a_mean_over_sequences_the_switch_loss_over_the_batch() -> None:
    first, second = torch.tensor([[0.9, 0.1]] * 3), torch.tensor([[0.1, 0.9]] * 3)
    together = routing_of(torch.stack((first, second)), 1)
    assert sequence_balance_loss(together).item() == pytest.approx(2 * 0.9)
    assert switch_balance_loss(together).item() == pytest.approx(1)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_loss_without_a_target_is_zero_and_has_a_gradient(chunked: bool) -> None:
    hidden, weight = torch.randn(1, 3, 5, requires_grad=True), torch.randn(11, 5)
    targets = torch.full((1, 3), IGNORED)
    loss = (
        head_loss(hidden, weight, targets)[0]
        if chunked
        else next_token_loss(hidden @ weight.T, targets)
    )
    loss.backward()
    assert loss == 0
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_sequence_loss_counts_unbiased_scores_not_the_chosen_experts() -> None:
    scores = torch.rand(2, 5, 4)
    elsewhere = Routing(scores, scores.topk(2, dim=-1, largest=False).indices)
    torch.testing.assert_close(
        sequence_balance_loss(elsewhere), sequence_balance_loss(routing_of(scores, 2))
    )


def test_gradient_flows_through_the_mean_scores_only() -> None:
    scores = torch.rand(2, 5, 4, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(sequence_balance_loss(routing_of(scores, 2)), scores)
    counts = torch.zeros(2, 4, dtype=torch.float64)
    for b in range(2):
        for t in range(5):
            for e in scores[b, t].topk(2).indices.tolist():
                counts[b, e] += 1
    share = scores / scores.sum(-1, keepdim=True)
    linear = (counts * 4 / (2 * 5) * share.mean(1)).sum(-1).mean()  # frequencies as constants
    torch.testing.assert_close(gradient, torch.autograd.grad(linear, scores)[0])
    assert gradient.abs().max() > 0


def test_switch_loss_counts_the_experts_that_were_chosen() -> None:
    scores = torch.tensor([[[0.8, 0.2], [0.6, 0.4]]])
    chosen = torch.tensor([[[1], [1]]])  # whatever moved the choice
    assert switch_balance_loss(Routing(scores, chosen)).item() == pytest.approx(2 * 0.3)


@pytest.mark.parametrize("loss", [sequence_balance_loss, switch_balance_loss])
def test_padding_changes_no_balance_loss(loss: Callable[..., Tensor]) -> None:
    scores = torch.rand(2, 7, 4).requires_grad_()
    counted = torch.tensor([[False] * 2 + [True] * 5] * 2)
    padded = loss(routing_of(scores, 2), counted)
    torch.testing.assert_close(padded, loss(routing_of(scores[:, 2:], 2)))
    (gradient,) = torch.autograd.grad(padded, scores)
    assert not gradient[:, :2].any()
    assert gradient[:, 2:].abs().max() > 0
    assert loss(routing_of(scores, 2), torch.zeros_like(counted)).item() == 0


@pytest.mark.parametrize("at_once", [(1, 1), (50, 12), (10**6, 10**6)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_head_loss_is_that_of_all_logits(
    at_once: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of some rows at a time, with targets that do not count, and behind another factor."""
    for name, value in zip(("LOGITS", "IN_CACHE"), at_once, strict=True):
        monkeypatch.setattr(losses, name, value)
    hidden = torch.randn(3, 7, 5, dtype=dtype, requires_grad=True)
    weight = torch.randn(11, 5, dtype=dtype, requires_grad=True)
    targets = torch.randint(11, (3, 7))
    targets[0, :4] = targets[2, 6] = IGNORED
    loss, nats = head_loss(hidden, weight, targets)
    each = F.cross_entropy((hidden @ weight.T).mT, targets, ignore_index=IGNORED, reduction="none")
    torch.testing.assert_close(nats, each.float(), rtol=1e-6, atol=1e-7)
    found = 0.3 * loss
    wanted = 0.3 * next_token_loss(hidden @ weight.T, targets)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
    of_found, of_wanted = (torch.autograd.grad(x, (hidden, weight)) for x in (found, wanted))
    for a, b in zip(of_found, of_wanted, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_head_loss_of_far_logits_is_exact() -> None:
    """A target 300 nats below the best one, where a probability would be zero."""
    hidden, weight = torch.tensor([[[1.0]]]), torch.tensor([[300.0], [0.0], [0.0]])
    assert head_loss(hidden, weight, torch.tensor([[1]]))[0] == 300


@pytest.mark.parametrize(("n_rows", "scale"), [(1024, 1.0), (1, 2.0**17)])
def test_the_head_loss_in_float16_overflows_only_where_a_smaller_scale_helps(
    n_rows: int, scale: float
) -> None:
    """Neither the sum over many rows, which is made before scaling, nor a scale above 65504."""
    weight = torch.zeros(5, 8)
    weight[1] = 2.0**-8  # almost every row prefers this token to its target
    exact = [t.requires_grad_() for t in (torch.full((1, n_rows, 8), 100.0), weight)]
    half = [t.detach().half().requires_grad_() for t in exact]
    targets = torch.zeros(1, n_rows, dtype=torch.int64)
    (scale * head_loss(*half, targets)[0]).backward()
    (scale * next_token_loss(exact[0] @ weight.T, targets)).backward()
    for found, wanted in zip(half, exact, strict=True):
        assert found.grad is not None
        assert wanted.grad is not None
        representable = wanted.grad.abs() < 65504  # of the hidden states all are
        assert representable.all() or found is half[1]
        wanted_half = wanted.grad[representable].half()
        torch.testing.assert_close(found.grad[representable], wanted_half, rtol=4e-3, atol=1e-4)


def test_the_head_loss_under_autocast_is_that_of_rounded_factors() -> None:
    hidden = torch.randn(2, 9, 16, requires_grad=True)
    weight = torch.randn(40, 16, requires_grad=True)
    targets = torch.randint(40, (2, 9))
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = head_loss(hidden, weight, targets)
        wanted = next_token_loss(F.linear(hidden, weight), targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    of_found, of_wanted = (torch.autograd.grad(x, (hidden, weight)) for x in (found, wanted))
    for a, b in zip(of_found, of_wanted, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.01 * b.norm()
