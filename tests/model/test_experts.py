"""Every way to run the experts against the slow one, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mla_lm.model.experts import ROW_BLOCK, WAYS, Experts, fastest, layout
from tests.model.test_moe import moe_config

DIM, INTER_DIM = 24, 16  # what `grouped_mm` takes


def build(way: str) -> Experts:
    layer = Experts(DIM, moe_config(6, 3, execution=way, moe_inter_dim=INTER_DIM))
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return layer


def plain_loop(layer: Experts, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    rows = []
    for x_n, experts_n, weights_n in zip(x, experts, weights, strict=True):
        row = torch.zeros_like(x_n)
        for e, w in zip(experts_n.tolist(), weights_n, strict=True):
            gate, up = layer.gate_up_proj[e].chunk(2)
            row = row + w * (layer.down_proj[e] @ (F.silu(gate @ x_n) * (up @ x_n)))
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("n_tokens", [1, 5, 150])
@pytest.mark.parametrize("used", [[4], [0, 2, 5], [0, 1, 2, 3, 4, 5]])
@pytest.mark.parametrize("way", ["auto", *WAYS])
def test_every_way_equals_a_plain_loop_forward_and_backward(
    way: str, n_tokens: int, used: list[int]
) -> None:
    layer = build(way)
    top_k = min(3, len(used))
    experts = torch.tensor(used)[torch.rand(n_tokens, len(used)).argsort(-1)[:, :top_k]]
    x = torch.randn(n_tokens, DIM, requires_grad=True)
    weights = torch.rand(n_tokens, top_k, requires_grad=True)
    y, expected = layer(x, experts, weights), plain_loop(layer, x, experts, weights)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)

    leaves = [x, weights, layer.gate_up_proj, layer.down_proj]
    direction = torch.randn_like(y) / n_tokens
    gradients = torch.autograd.grad(y, leaves, direction)
    for gradient, reference in zip(
        gradients, torch.autograd.grad(expected, leaves, direction), strict=True
    ):
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-5)
    idle = sorted(set(range(6)) - set(experts.flatten().tolist()))
    for gradient in gradients[2:]:
        assert not gradient[idle].any()


@pytest.mark.parametrize("way", list(WAYS))
def test_every_way_takes_autocast_and_returns_the_type_of_its_input(way: str) -> None:
    layer, x = build(way), torch.randn(70, DIM)
    experts, weights = torch.rand(70, 6).argsort(-1)[:, :3], torch.rand(70, 3)
    expected = layer(x, experts, weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x, experts, weights)
    assert y.dtype == torch.float32
    assert not torch.equal(y, expected)
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.05)
    y.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


def test_padding_reads_no_token() -> None:
    """An expert's padding may not touch a token it was not chosen for: that one may overflow it."""
    layer = build("padded")
    x = torch.randn(5, DIM)
    x[0] = 1e30
    experts = torch.tensor([[0], [1], [1], [1], [1]])
    y = layer(x, experts, torch.ones(5, 1))
    y[1:].sum().backward()
    assert torch.isfinite(layer.gate_up_proj.grad[1]).all()
    assert torch.isfinite(layer.down_proj.grad[1]).all()


def test_shapes_repeat_whatever_the_load() -> None:
    *_, rows = layout(torch.randint(2, (150, 1)) * 4, 6)
    assert [n % ROW_BLOCK for n in rows] == [0] * 6
    assert [n > 0 for n in rows] == [True, False, False, False, True, False]
    assert sum(rows) < 150 + 2 * ROW_BLOCK


@pytest.mark.parametrize(
    ("n_tokens", "way"), [(0, "padded"), (1, "few_tokens"), (63, "few_tokens"), (64, "padded")]
)
def test_few_tokens_take_another_way_than_many(n_tokens: int, way: str) -> None:
    assert fastest(torch.zeros(n_tokens, DIM), torch.zeros(2, 2 * INTER_DIM, DIM)) == way


@pytest.mark.parametrize(
    ("major", "n_tokens", "dtype", "weights", "dim", "way"),
    [
        (9, 4096, torch.bfloat16, torch.float32, DIM, "grouped_mm"),
        (10, 4096, torch.bfloat16, torch.float32, DIM, "padded"),
        (8, 4096, torch.bfloat16, torch.float32, DIM, "padded"),
        (9, 4096, torch.float32, torch.float32, DIM, "padded"),
        (9, 4096, torch.bfloat16, torch.float32, DIM + 4, "padded"),
        (9, 1, torch.bfloat16, torch.float32, DIM, "few_tokens"),
        (9, 1, torch.bfloat16, torch.bfloat16, DIM, "grouped_mm"),
    ],
)
def test_the_grouped_kernel_is_for_the_gpus_that_have_it(
    monkeypatch: pytest.MonkeyPatch,
    major: int,
    n_tokens: int,
    dtype: torch.dtype,
    weights: torch.dtype,
    dim: int,
    way: str,
) -> None:
    class OnGpu(Tensor):
        device = torch.device("cuda")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    matrices = torch.zeros(2, 2 * INTER_DIM, dim, dtype=weights).as_subclass(OnGpu)
    assert fastest(torch.zeros(n_tokens, dim, dtype=dtype), matrices) == way
