"""Products and the fused kernel are the same attention, forward and backward, for every mask."""

import pytest
import torch
from torch import Tensor

from mla_lm.model import attend as attend_module
from mla_lm.model.attend import attend

LENGTHS = (2, 8, 21)
SCALE = 0.3


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attend_module, "ROWS", 4)


def inputs(length: int, kv_heads: int, dtype: torch.dtype) -> list[Tensor]:
    shapes = [(2, 6, length, 10), (2, kv_heads, length, 10), (2, kv_heads, length, 7)]
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


def by_hand(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """The equation: (B, T, H, v_dim), seen (B | 1, 1, T, T)."""
    sharing = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(sharing, dim=1) for t in (k, v))
    scores = (SCALE * q @ k.mT).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def some_mask(kind: str, length: int) -> Tensor | None:
    """Causal, of documents that differ from row to row, or of trees that are the same in all."""
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    if kind == "none":
        return None
    if kind == "trees":
        return (causal & (torch.rand(length, length) < 0.6) | torch.eye(length).bool())[None, None]
    documents = torch.randint(2, (2, length)).cumsum(dim=1)
    return (causal & (documents[:, :, None] == documents[:, None]))[:, None]


def results(inputs: list[Tensor], context: Tensor) -> list[Tensor]:
    """What attention gave, and the gradients of an uneven loss."""
    weights = torch.linspace(-1, 1, context.numel(), dtype=context.dtype).view_as(context)
    return [context.detach(), *torch.autograd.grad((context * weights).sum(), inputs)]


@pytest.mark.parametrize("kind", ["none", "documents", "trees"])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("length", LENGTHS)
def test_products_are_the_equation(kind: str, added: bool, kv_heads: int, length: int) -> None:
    q, k, v = inputs(length, kv_heads, torch.float64)
    seen = some_mask(kind, length)
    mask = seen
    if seen is not None and added:
        mask = torch.zeros(seen.shape, dtype=q.dtype).masked_fill_(~seen, -torch.inf)
    if seen is None:
        seen = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    found = results([q, k, v], attend(q, k, v, mask, scale=SCALE))
    wanted = results([q, k, v], by_hand(q, k, v, seen))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [1, 6])
def test_the_fused_kernel_gives_the_same(
    dtype: torch.dtype, kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_products = inputs(21, kv_heads, dtype)
    found = results(of_products, attend(*of_products, None, scale=SCALE))
    monkeypatch.setattr(attend_module, "PRODUCTS", 20)
    monkeypatch.setattr(attend_module, "by_products", None)
    wanted = results(of_products, attend(*of_products, None, scale=SCALE))
    for a, b in zip(found, wanted, strict=True):
        within = 1e-5 if dtype == torch.float32 else 0.03
        assert a.dtype == dtype
        assert (a - b).norm() <= within * b.norm()
