"""The gate against a numpy reference; what a bias, autocast and forced balance do to it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mla_lm.config import MoEConfig
from mla_lm.model.moe import MoE, Router
from mla_lm.objective.balance import expert_load
from tests.conftest import tiny_config

DIM, BATCH, LENGTH = 11, 2, 5


def moe_config(n_experts: int = 5, top_k: int = 2, **changes: Any) -> MoEConfig:
    sizes = {"n_routed_experts": n_experts, "n_activated_experts": top_k, "moe_inter_dim": 7}
    return tiny_config().model.ffn.model_copy(update=sizes | changes)


class Case(NamedTuple):
    moe: MoEConfig
    biases: list[float]
    seed: int = 0


@st.composite
def cases(draw: st.DrawFn) -> Case:
    groups, per_group = draw(st.integers(1, 4)), draw(st.integers(2, 4))
    topk_groups = draw(st.integers(1, groups))
    n_experts = groups * per_group
    moe = moe_config(
        n_experts,
        draw(st.integers(1, min(5, topk_groups * per_group))),
        n_groups=groups,
        topk_groups=topk_groups,
        route_scale=draw(st.sampled_from([1.0, 2.5])),
        norm_topk=draw(st.booleans()),
    )
    bias = st.floats(-10, 10, width=32)
    biases = draw(st.lists(bias, min_size=n_experts, max_size=n_experts))
    return Case(moe, biases, draw(st.integers(0, 2**32)))


def build(moe: MoEConfig, biases: Sequence[float] = (0.0,), seed: int = 0) -> tuple[MoE, Tensor]:
    """A layer with biases, and an input (BATCH, LENGTH, DIM)."""
    torch.manual_seed(seed)
    layer = MoE(DIM, moe)
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.5)
    layer.router.e_score_correction_bias.copy_(torch.tensor(biases))
    return layer, torch.randn(BATCH, LENGTH, DIM)


def slow_choice(choice: np.ndarray, moe: MoEConfig) -> set[int]:
    """The experts of one token from its biased scores (E,)."""
    groups = np.split(choice, moe.n_groups)
    best_two = [np.sort(group)[-2:].sum() for group in groups]
    kept = np.argsort(best_two)[-moe.topk_groups :]
    size = len(groups[0])
    candidates = [e for e in range(len(choice)) if e // size in kept]
    return set(sorted(candidates, key=lambda e: -choice[e])[: moe.n_activated_experts])


def numpy_of(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def check_against_numpy(case: Case) -> None:
    layer, x = build(*case)
    routing, weights = layer.router(x)
    scores = 1 / (1 + np.exp(-numpy_of(x) @ numpy_of(layer.router.weight).T))
    np.testing.assert_allclose(numpy_of(routing.scores), scores, atol=1e-6)
    bias = np.array(case.biases, dtype=np.float32)
    choice = routing.scores.detach().numpy() + bias  # float32, as the gate: ties must be the same
    for b, t in np.ndindex(BATCH, LENGTH):
        experts = routing.experts[b, t].tolist()
        assert len(experts) == len(set(experts))
        assert set(experts) == slow_choice(choice[b, t], case.moe)
        unbiased = scores[b, t, experts]
        total = unbiased.sum() if case.moe.norm_topk else 1.0
        expected = case.moe.route_scale * unbiased / total
        np.testing.assert_allclose(numpy_of(weights[b, t]), expected, rtol=1e-4)


@settings(max_examples=200)
@given(cases())
def test_routing_equals_the_numpy_reference(case: Case) -> None:
    check_against_numpy(case)


def test_the_output_is_the_weighted_experts_and_the_shared_ones() -> None:
    layer, x = build(moe_config(route_scale=2.5))
    y, routing = layer(x)
    _, weights = layer.router(x)
    flat = (t.flatten(0, 1) for t in (x, routing.experts, weights))
    expected = layer.experts(*flat).view_as(x) + layer.shared_experts(x)
    torch.testing.assert_close(y, expected)


def test_the_reference_finds_groups_excluded_with_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(moe_config(8, 3, n_groups=4, topk_groups=2), [-5.0] * 8)
    check_against_numpy(case)
    honest = Router.keep_best_groups
    monkeypatch.setattr(
        Router, "keep_best_groups", lambda self, choice: honest(self, choice).nan_to_num(neginf=0.0)
    )
    with pytest.raises(AssertionError):
        check_against_numpy(case)


def test_a_bias_moves_selection_and_gets_no_gradient() -> None:
    layer, x = build(moe_config())
    bias = layer.router.e_score_correction_bias
    bias[3] = 10.0
    y, routing = layer(x)
    assert (routing.experts == 3).any(-1).all()
    y.sum().backward()
    assert bias.dtype == torch.float32
    assert bias.grad is None
    assert not bias.requires_grad
    assert "e_score_correction_bias" in dict(layer.router.named_buffers())
    assert layer.router.weight.grad.abs().max() > 0


def test_scores_are_float32_under_autocast() -> None:
    layer, x = build(moe_config())
    expected, _ = layer.router(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.shared_experts(x).dtype == torch.bfloat16
        routing, _ = layer.router(x)
        y, _ = layer(x)
    assert routing.scores.dtype == torch.float32
    torch.testing.assert_close(routing.scores, expected.scores, rtol=0, atol=0)
    torch.testing.assert_close(y.float(), layer(x)[0], rtol=0.05, atol=0.05)


def test_equal_scores_still_give_distinct_experts() -> None:
    layer, x = build(moe_config(8, 4, n_groups=2))
    torch.nn.init.zeros_(layer.router.weight)
    routing, weights = layer.router(x)
    assert all(len(set(experts)) == 4 for experts in routing.experts.flatten(0, 1).tolist())
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 4))


@given(cases(), st.lists(st.booleans(), min_size=BATCH * LENGTH, max_size=BATCH * LENGTH))
def test_loads_count_the_tokens_of_each_expert_that_are_no_padding(
    case: Case, counted: list[bool]
) -> None:
    layer, x = build(*case)
    _, routing = layer(x)
    mask = torch.tensor(counted).view(BATCH, LENGTH)
    chosen = F.one_hot(routing.experts, case.moe.n_routed_experts).sum(2)  # (B, T, E)
    assert torch.equal(expert_load([routing]), chosen.sum(1)[None])
    assert torch.equal(expert_load([routing], mask), (chosen * mask[..., None]).sum(1)[None])


def test_forced_balance_is_round_robin() -> None:
    layer, x = build(moe_config(force_balance=True), [9.0, 0.0, 0.0, 0.0, 0.0])
    y, routing = layer(x)
    assert expert_load([routing]).sum((0, 1)).tolist() == [BATCH * LENGTH * 2 // 5] * 5
    assert all(len(set(experts)) == 2 for experts in routing.experts.flatten(0, 1).tolist())
    y.sum().backward()
    assert layer.router.weight.grad.abs().max() > 0
