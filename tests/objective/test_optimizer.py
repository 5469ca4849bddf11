import io
import math
from itertools import pairwise
from weakref import finalize

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer

from mla_lm.config import LossConfig, OptimConfig
from mla_lm.model import Transformer
from mla_lm.objective import optimizer as optim
from mla_lm.objective.optimizer import build_optimizer, orthogonalize
from mla_lm.objective.schedules import lr_multiplier, mtp_weight
from tests.conftest import tiny_config

FRACTIONS = st.floats(0, 1)


def optim_config(**changes: object) -> OptimConfig:
    return tiny_config("optim=adamw").optim.model_copy(update=changes)


@st.composite
def schedules(draw: st.DrawFn) -> OptimConfig:
    return optim_config(
        schedule=draw(st.sampled_from(["cosine", "wsd"])),
        warmup_fraction=draw(st.floats(0, 1, exclude_max=True)),
        decay_fraction=draw(FRACTIONS),
        min_lr_ratio=draw(FRACTIONS),
    )


def multipliers(cfg: OptimConfig, max_steps: int) -> list[float]:
    return [lr_multiplier(step, cfg=cfg, max_steps=max_steps) for step in range(max_steps + 2)]


@given(schedules(), st.integers(1, 60))
def test_multiplier_rises_during_warm_up_then_falls_to_the_minimum(
    cfg: OptimConfig, max_steps: int
) -> None:
    warmup = round(cfg.warmup_fraction * max_steps)
    values = multipliers(cfg, max_steps)
    assert values[:warmup] == pytest.approx([(step + 1) / warmup for step in range(warmup)])
    assert all(a >= b for a, b in pairwise(values[warmup:]))
    assert all(0 < value <= 1 for value in values[:max_steps])
    assert values[max_steps:] == pytest.approx([cfg.min_lr_ratio] * 2)


def test_schedules_by_hand() -> None:
    cfg = optim_config(schedule="cosine", warmup_fraction=0.2, min_lr_ratio=0.1)
    falling = [0.1 + 0.45 * (1 + math.cos(math.pi * step / 8)) for step in range(9)]
    assert multipliers(cfg, 10)[:11] == pytest.approx([0.5, 1.0, *falling])
    cfg = optim_config(schedule="wsd", warmup_fraction=0.1, decay_fraction=0.4, min_lr_ratio=0.0)
    assert multipliers(cfg, 10)[:11] == pytest.approx([1] * 7 + [0.75, 0.5, 0.25, 0])


def test_mtp_weight_switches_once() -> None:
    cfg = LossConfig(mtp_weight=0.3, mtp_final_weight=0.1, mtp_switch=0.67)
    weights = [mtp_weight(step, cfg=cfg, max_steps=100) for step in range(100)]
    assert weights == [0.3] * 67 + [0.1] * 33


@pytest.mark.parametrize("tied", ["true", "false"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_parameter_is_in_one_group_and_only_matrices_decay(kind: str, tied: str) -> None:
    model = Transformer(tiny_config(f"model.tie_embeddings={tied}").model)
    groups = build_optimizer(model, optim_config(kind=kind)).param_groups
    names = {p: name for name, p in model.named_parameters()}
    grouped = [p for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(names)
    for group in groups:
        for p in group["params"]:
            assert (group["weight_decay"] > 0) == (p.ndim >= 2), names[p]
            outer = p.ndim < 2 or names[p].startswith(("embed", "lm_head")) or "router" in names[p]
            assert group["kind"] == ("adamw" if outer or kind == "adamw" else "muon"), names[p]


def twins(kind: str) -> tuple[nn.Module, nn.Module]:
    """Two models with equal weights."""
    cfg = tiny_config(f"optim={kind}").model
    first, second = Transformer(cfg), Transformer(cfg)
    second.load_state_dict(first.state_dict())
    return first, second


def step_all(seed: int, *pairs: tuple[nn.Module, Optimizer]) -> None:
    """One step of each optimizer with the same random gradients."""
    for model, optimizer in pairs:
        torch.manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()


def test_adamw_equals_torch() -> None:
    ours, theirs = twins("adamw")
    cfg = optim_config(weight_decay=0.3, lr=0.01)
    optimizer = build_optimizer(ours, cfg)
    reference = torch.optim.AdamW(
        [
            {"params": [p for p in theirs.parameters() if p.ndim >= 2], "weight_decay": 0.3},
            {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=cfg.lr,
        betas=cfg.betas,
        eps=cfg.eps,
    )
    before = [p.detach().clone() for p in ours.parameters()]
    for seed in range(6):
        step_all(seed, (ours, optimizer), (theirs, reference))
    for start, p, expected in zip(before, ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-5, atol=1e-6)
        assert (p - start).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_state_survives_a_file_bit_for_bit(kind: str) -> None:
    first, second = twins(kind)
    cfg = optim_config(kind=kind)
    optimizer = build_optimizer(first, cfg)
    for seed in range(3):
        step_all(seed, (first, optimizer))

    file = io.BytesIO()
    torch.save((first.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    second.load_state_dict(weights)
    restored, forgetful = build_optimizer(second, cfg), build_optimizer(first, cfg)
    restored.load_state_dict(state)

    for seed in range(3, 6):
        step_all(seed, (first, optimizer), (second, restored))
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    step_all(6, (first, forgetful), (second, restored))
    assert not any(map(torch.equal, first.parameters(), second.parameters()))


def test_counts_of_steps_read_from_a_file_follow_their_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The meta device in place of a GPU: torch leaves `step` where the file put it."""
    steps: list[Tensor] = []
    monkeypatch.setattr(optim, "adamw", lambda *given, **_: steps.extend(given[5]))
    layer = nn.Linear(3, 2, device="meta")
    optimizer = build_optimizer(layer, optim_config(kind="adamw"))
    moments = {"exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
    state = {number: {"step": torch.tensor(3.0), **moments} for number in range(2)}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    for p in layer.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert [step.device.type for step in steps] == ["meta", "meta"]


@pytest.mark.parametrize("shape", [(1, 24, 40), (1, 40, 24), (3, 16, 16), (5, 12, 31)])
def test_orthogonalize_pulls_singular_values_to_about_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape) * torch.logspace(-3, 3, shape[0]).view(-1, 1, 1)
    result = orthogonalize(matrices)
    assert result.dtype == torch.float32
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6
    assert values.max() < 1.3
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    similarity = torch.cosine_similarity(result.flatten(1), (u @ vh).flatten(1))
    assert similarity.min() > 0.95


def test_muon_steps_stacked_experts_as_separate_matrices_and_decays_like_adamw() -> None:
    stacked = nn.Parameter(torch.randn(3, 8, 5))
    cfg = optim_config(kind="muon", weight_decay=0.5, lr=0.1)
    optimizer = build_optimizer(nn.ParameterDict({"stacked": stacked}), cfg)
    before = stacked.detach().clone() * (1 - 0.1 * 0.5)
    stacked.grad = torch.randn(3, 8, 5)
    optimizer.step()
    for index in range(3):
        values = torch.linalg.svdvals((before - stacked)[index].detach())
        scale = 0.1 * 0.2 * 8**0.5
        assert values.min() > 0.6 * scale
        assert values.max() < 1.3 * scale


def test_muon_leaves_a_matrix_without_gradient_alone() -> None:
    """An idle expert and a whole matrix for 200 steps; then the expert follows its new gradient."""
    weights = {"stacked": torch.randn(3, 8, 5), "alone": torch.randn(8, 5)}
    stacked, alone = parameters = [nn.Parameter(tensor) for tensor in weights.values()]
    cfg = optim_config(kind="muon", weight_decay=0.5, lr=0.01)
    optimizer = build_optimizer(nn.ParameterDict(zip(weights, parameters, strict=True)), cfg)
    for step in range(201):
        stacked.grad, alone.grad = torch.randn(3, 8, 5), torch.randn(8, 5)
        if step:
            stacked.grad[1], alone.grad[:] = 0, 0
        before = [p.detach().clone() for p in parameters]
        optimizer.step()
        moved = [not before[0][expert].equal(stacked[expert]) for expert in range(3)]
        assert [*moved, not before[1].equal(alone)] == [True, step == 0, True, step == 0]
    stacked.grad = gradient = torch.randn(3, 8, 5)
    decayed = stacked[1].detach() * (1 - 0.01 * 0.5)
    optimizer.step()
    step_of_one = (decayed - stacked[1].detach()) / (0.01 * 0.2 * 8**0.5)
    torch.testing.assert_close(step_of_one, orthogonalize(gradient)[1], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("attention", ["mla", "gqa"])
def test_muon_takes_the_parts_of_a_matrix_by_themselves(attention: str) -> None:
    cfg = tiny_config(f"model/attention={attention}", "optim=muon", "optim.weight_decay=0.0")
    model = Transformer(cfg.model)
    optimizer = build_optimizer(model, cfg.optim)
    layer = model.blocks[0].attention
    name, sizes = next(iter(layer.row_parts.items()))  # type: ignore[union-attr,operator]
    weight = layer.get_parameter(name)
    assert sum(sizes) == len(weight)
    before = weight.detach().clone()
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    for part in filter(len, (before - weight.detach()).split(sizes)):
        values = torch.linalg.svdvals(part) / (cfg.optim.lr * 0.2 * max(part.shape) ** 0.5)
        assert values.min() > 0.6
        assert values.max() < 1.3


def test_sharded_matrices_are_whole_for_one_shape_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Here a whole is a copy, so that those that are there can be counted."""
    ours, theirs = twins("muon")
    cfg = optim_config(kind="muon")
    pairs = [(model, build_optimizer(model, cfg)) for model in (ours, theirs)]
    step_all(0, pairs[0])
    there: list[int] = []
    most = 0

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal most
        copy = tensor.detach().numpy().copy()  # lives as long as a tensor with its memory does
        there.append(copy.size)
        finalize(copy, there.remove, copy.size)
        most = max(most, sum(there))
        return torch.from_numpy(copy)

    monkeypatch.setattr(optim, "whole", copied)
    step_all(0, pairs[1])
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    hidden = [p.numel() for p in pairs[1][1].param_groups[0]["params"]]
    assert max(hidden) < most < sum(hidden)
