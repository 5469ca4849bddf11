"""The gate against a numpy reference, the fast expert path against a plain loop."""

from random import Random
from typing import Literal, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mla_lm.config import MoEConfig
from mla_lm.model.moe import MoE, Router
from mla_lm.objective.balance import expert_load

DIM, INTER_DIM, BATCH, LENGTH = 11, 7, 2, 5
Execution = Literal["auto", "padded", "grouped_mm", "few_tokens", "loop"]


def moe_config(
    n_experts: int,
    top_k: int,
    *,
    groups: int = 1,
    topk: int = 1,
    scale: float = 1.0,
    norm: bool = True,
    execution: Execution = "auto",
) -> MoEConfig:
    return MoEConfig(
        kind="moe",
        moe_inter_dim=INTER_DIM,
        n_routed_experts=n_experts,
        n_shared_experts=2,
        n_activated_experts=top_k,
        n_groups=groups,
        topk_groups=topk,
        route_scale=scale,
        norm_topk=norm,
        execution=execution,
        force_balance=False,
    )


class Case(NamedTuple):
    moe: MoEConfig
    biases: list[float]
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    groups, per_group = draw(st.integers(1, 4)), draw(st.integers(2, 4))
    topk = draw(st.integers(1, groups))
    top_k = draw(st.integers(1, min(5, topk * per_group)))
    n_experts = groups * per_group
    moe = moe_config(
        n_experts,
        top_k,
        groups=groups,
        topk=topk,
        scale=draw(st.sampled_from([1.0, 2.5])),
        norm=draw(st.booleans()),
        execution=draw(st.sampled_from(["padded", "few_tokens", "loop"])),
    )
    bias = st.floats(-10, 10, width=32)
    biases = draw(st.lists(bias, min_size=n_experts, max_size=n_experts))
    return Case(moe, biases, draw(st.integers(0, 2**32)))


def build(case: Case) -> tuple[MoE, Tensor]:
    """A layer with the case's biases, and an input (BATCH, LENGTH, DIM)."""
    torch.manual_seed(case.seed)
    layer = MoE(DIM, case.moe)
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.5)
    layer.router.e_score_correction_bias.copy_(torch.tensor(case.biases))
    return layer, torch.randn(BATCH, LENGTH, DIM)


def slow_choice(choice: np.ndarray, moe: MoEConfig) -> set[int]:
    """The experts of one token from its biased scores (E,)."""
    groups = np.split(choice, moe.n_groups)
    best_two = [np.sort(group)[-2:].sum() for group in groups]
    kept = np.argsort(best_two)[-moe.topk_groups :]
    size = len(groups[0])
    candidates = [e for e in range(len(choice)) if e // size in kept]
    return set(sorted(candidates, key=lambda e: -choice[e])[: moe.n_activated_experts])


def slow_swiglu(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    gated = gate @ x
    return down @ (gated / (1 + np.exp(-gated)) * (up @ x))


def numpy_of(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def slow_token(layer: MoE, x: np.ndarray, scores: np.ndarray, chosen: set[int]) -> np.ndarray:
    """y = sum w_i E_i(x) + shared(x) for one token."""
    moe, shared = layer.router.moe, layer.shared_experts
    total = sum(scores[e] for e in chosen) if moe.norm_topk else 1.0
    y = slow_swiglu(
        x, *(numpy_of(getattr(shared, f"{n}_proj").weight) for n in ("gate", "up", "down"))
    )
    for e in chosen:
        gate, up = np.split(numpy_of(layer.experts.gate_up_proj[e]), 2)
        expert = slow_swiglu(x, gate, up, numpy_of(layer.experts.down_proj[e]))
        y = y + moe.route_scale * scores[e] / total * expert
    return y


def check_against_numpy(case: Case) -> None:
    layer, x = build(case)
    y, routing = layer(x)
    scores = 1 / (1 + np.exp(-numpy_of(x) @ numpy_of(layer.router.weight).T))
    np.testing.assert_allclose(numpy_of(routing.scores), scores, atol=1e-6)
    bias = np.array(case.biases, dtype=np.float32)
    choice = routing.scores.detach().numpy() + bias  # float32, as the gate: ties must be the same
    for b, t in np.ndindex(BATCH, LENGTH):
        chosen = slow_choice(choice[b, t], case.moe)
        assert chosen == set(routing.experts[b, t].tolist())
        expected = slow_token(layer, numpy_of(x[b, t]), scores[b, t], chosen)
        np.testing.assert_allclose(numpy_of(y[b, t]), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=200)
@given(cases())
def test_equals_numpy_reference(case: Case) -> None:
    check_against_numpy(case)


def test_the_reference_finds_groups_excluded_with_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(moe_config(8, 3, groups=4, topk=2), [-5.0] * 8, seed=0)
    check_against_numpy(case)
    honest = Router.keep_best_groups
    monkeypatch.setattr(
        Router, "keep_best_groups", lambda self, choice: honest(self, choice).nan_to_num(neginf=0.0)
    )
    with pytest.raises(AssertionError):
        check_against_numpy(case)


@given(cases(), st.floats(-5, 5, width=32))
def test_a_constant_added_to_all_biases_changes_nothing(case: Case, constant: float) -> None:
    layer, x = build(case)
    layer.router.e_score_correction_bias.copy_(torch.tensor(case.biases).round(decimals=1))
    before, _ = layer.router(x)
    layer.router.e_score_correction_bias += constant
    after, _ = layer.router(x)
    torch.testing.assert_close(after.experts.sort(-1).values, before.experts.sort(-1).values)
    torch.testing.assert_close(after.scores, before.scores, rtol=0, atol=0)


def test_a_bias_moves_selection_and_gets_no_gradient() -> None:
    layer, x = build(Case(moe_config(5, 2), [0.0] * 5, seed=0))
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
    layer, x = build(Case(moe_config(5, 2), [0.0] * 5, seed=0))
    expected, _ = layer.router(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.shared_experts(x).dtype == torch.bfloat16
        routing, _ = layer.router(x)
        y, _ = layer(x)
    assert routing.scores.dtype == torch.float32
    torch.testing.assert_close(routing.scores, expected.scores, rtol=0, atol=0)
    torch.testing.assert_close(y.float(), layer(x)[0], rtol=0.05, atol=0.05)


def test_equal_scores_still_give_distinct_experts() -> None:
    layer, x = build(Case(moe_config(8, 4, groups=2), [0.0] * 8, seed=0))
    torch.nn.init.zeros_(layer.router.weight)
    routing, weights = layer.router(x)
    assert all(len(set(experts)) == 4 for experts in routing.experts.flatten(0, 1).tolist())
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 4))


def test_no_tokens_at_all() -> None:
    layer, _ = build(Case(moe_config(5, 2), [0.0] * 5, seed=0))
    y, routing = layer(torch.zeros(BATCH, 0, DIM))
    assert y.shape == (BATCH, 0, DIM)
    assert routing.experts.shape == (BATCH, 0, 2)


@given(cases(), st.randoms(use_true_random=False))
def test_permuted_experts_permute_the_choice_and_nothing_else(case: Case, rng: Random) -> None:
    """Within a group, and whole groups: what `n_groups` holds together stays together."""
    layer, x = build(case)
    y, routing = layer(x)
    moe = case.moe
    size = moe.n_routed_experts // moe.n_groups
    groups = [[g * size + i for i in range(size)] for g in range(moe.n_groups)]
    for group in groups:
        rng.shuffle(group)
    rng.shuffle(groups)
    order = [expert for group in groups for expert in group]  # old expert at each new place
    for tensor in (
        layer.router.weight,
        layer.router.e_score_correction_bias,
        layer.experts.gate_up_proj,
        layer.experts.down_proj,
    ):
        tensor.data = tensor.data[order]
    permuted, after = layer(x)
    old = torch.tensor(order)[after.experts]
    assert torch.equal(old.sort(-1).values, routing.experts.sort(-1).values)
    torch.testing.assert_close(permuted, y, rtol=1e-4, atol=1e-5)


@given(cases(), st.lists(st.booleans(), min_size=BATCH * LENGTH, max_size=BATCH * LENGTH))
def test_counts_sum_to_the_tokens_that_count_times_top_k(case: Case, counted: list[bool]) -> None:
    layer, x = build(case)
    _, routing = layer(x)
    mask = torch.tensor(counted).view(BATCH, LENGTH)
    load = expert_load([routing], mask)
    assert load.shape == (1, BATCH, case.moe.n_routed_experts)
    top_k = case.moe.n_activated_experts
    assert load.sum(-1).tolist() == [[top_k * n for n in mask.sum(1).tolist()]]
    assert int(expert_load([routing]).sum()) == top_k * BATCH * LENGTH


def test_forced_balance_is_round_robin() -> None:
    moe = moe_config(5, 2).model_copy(update={"force_balance": True})
    layer, x = build(Case(moe, [9.0, 0.0, 0.0, 0.0, 0.0], seed=0))
    y, routing = layer(x)
    assert expert_load([routing]).sum((0, 1)).tolist() == [BATCH * LENGTH * 2 // 5] * 5
    assert all(len(set(experts)) == 2 for experts in routing.experts.flatten(0, 1).tolist())
    y.sum().backward()
    assert layer.router.weight.grad.abs().max() > 0
