import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mla_lm.model import Routing
from mla_lm.objective.balance import (
    dead_experts,
    expert_load,
    load_entropy,
    max_violation,
    update_bias,
)
from mla_lm.objective.schedules import bias_speed
from tests.conftest import tiny_config

LOADS = st.lists(st.integers(0, 10**12), min_size=2, max_size=9)


@example([10**12, 10**12 + 2])  # a difference of one token in a trillion
@example([5, 5, 5])
@given(LOADS)
def test_bias_step_has_the_opposite_sign_of_the_excess(load: list[int]) -> None:
    bias = torch.zeros(len(load), dtype=torch.float64)
    update_bias(bias, torch.tensor(load), speed=1.0)
    signs = torch.tensor(
        [(each * len(load) < sum(load)) - (each * len(load) > sum(load)) for each in load]
    ).double()
    torch.testing.assert_close(bias, signs - signs.mean())


def test_updates_level_the_load_of_a_skewed_gate() -> None:
    scores = torch.rand(1, 500, 6) * torch.linspace(0.6, 1.0, 6)
    bias = torch.zeros(6)

    def load() -> torch.Tensor:
        return expert_load([Routing(scores, (scores + bias).topk(2, dim=-1).indices)])[0, 0]

    before = max_violation(load())
    for _ in range(300):
        update_bias(bias, load(), speed=1e-3)
    assert max_violation(load()) < 0.1 < before
    assert abs(float(bias.double().mean())) < 1e-6


def test_metrics_of_load_by_hand() -> None:
    load = torch.tensor([[4, 4, 4, 4], [10, 10, 0, 0], [7, 0, 0, 0]])
    assert max_violation(load).tolist() == pytest.approx([0, 1, 3])
    assert load_entropy(load).tolist() == pytest.approx([1, 0.5, 0], abs=1e-6)
    assert dead_experts(load).tolist() == [0, 2, 3]
    assert load_entropy(torch.tensor([[7]])).tolist() == [1]


def test_padding_is_left_out_and_a_pair_of_tokens_counts_where_both_do() -> None:
    counted = torch.tensor([[False, True, True, True], [True, True, True, False]])
    experts = torch.tensor([[[0], [1], [2], [3]], [[0], [1], [2], [3]]])
    whole = Routing(torch.rand(2, 4, 5), experts)
    of_depth_1 = Routing(torch.rand(2, 3, 5), experts[:, :3])
    assert expert_load([whole], counted).tolist() == [[[0, 1, 1, 1, 0], [1, 1, 1, 0, 0]]]
    assert expert_load([of_depth_1], counted).tolist() == [[[0, 1, 1, 0, 0], [1, 1, 0, 0, 0]]]


@pytest.mark.parametrize(
    ("fraction", "shares"),
    [
        (0.0, [1, 1, 1, 1, 1, 0]),
        (0.4, [1, 1, 1, 1, 0.5, 0]),
        (1.0, [1, 0.8, 0.6, 0.4, 0.2, 0]),
    ],
)
def test_biases_move_slower_over_the_last_part_of_a_run(
    fraction: float, shares: list[float]
) -> None:
    words = ("balance.bias_update_speed=0.25", f"balance.bias_decay_fraction={fraction}")
    cfg = tiny_config(*words).balance
    speeds = [bias_speed(step, cfg=cfg, max_steps=5) for step in range(6)]
    assert speeds == pytest.approx([0.25 * share for share in shares])
