"""softmax(scale q k^T) v: fused kernels, or plain matrix products where a CPU is faster with them.

B batch, T new tokens, L tokens attended to, H query heads, G key/value heads, N = B * H.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PRODUCTS = 2048  # longest sequence for `Products` on a CPU; its memory grows quadratically
ROWS = 128  # queries per block


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scale: float) -> Tensor:
    """Attention -> (B, T, H, v_dim): q (B, H, T, qk_dim), k (B, G, L, qk_dim), v (B, G, L, v_dim).

    mask (1 | B, 1, T, L) is boolean (True: attend) or additive and must itself be causal. Without a
    mask T queries attend causally to their T keys; a single query attends to all. G divides H.
    """
    batch, heads, n_new, _ = q.shape
    if q.device.type == "cpu" and 1 < n_new == k.shape[2] <= PRODUCTS:
        context = by_products(q, k, v, mask, scale=scale)
    else:
        context = fused(q, k, v, mask, scale=scale)
    return context.reshape(batch, heads, n_new, v.shape[-1]).transpose(1, 2)


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scale: float) -> Tensor:
    """With torch's kernels: (B, H, T, v_dim), or (B, G, H / G * T, v_dim)."""
    batch, heads, n_new, v_dim = *q.shape[:3], v.shape[-1]
    if v_dim < q.shape[-1]:  # flash kernels need equal widths; zero columns change nothing
        v = F.pad(v, (0, q.shape[-1] - v_dim))
    causal = mask is None and n_new > 1
    sharing = heads // k.shape[1]  # query heads per key/value head
    if sharing > 1 and n_new < k.shape[2]:  # few queries: group them as rows
        q = q.reshape(batch, k.shape[1], sharing * n_new, q.shape[-1])
        mask = None if mask is None else mask.repeat(1, 1, sharing, 1)
    elif sharing > 1 and q.device.type == "cuda" and (mask is not None or q.dtype == torch.float32):
        # Flash takes neither; the memory-efficient kernel takes equal numbers of heads only.
        k, v = (t.repeat_interleave(sharing, dim=1) for t in (k, v))
    context = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return context[..., :v_dim]


def by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scale: float) -> Tensor:
    """With matrix products, for L = T: (N, T, v_dim)."""
    heads = q.shape[1]
    if heads > k.shape[1]:
        k, v = (t.repeat_interleave(heads // k.shape[1], dim=1) for t in (k, v))
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = q.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
        mask = mask.squeeze(1)
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    context: Tensor = Products.apply(q, k, v, mask, scale)  # type: ignore[no-untyped-call]
    return context


class Products(torch.autograd.Function):
    """Attention in blocks of `ROWS` queries against the keys up to the last of them: half the work.

    Scores have the dtype of q, as in every implementation without a fused kernel.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        context, saved = [], []
        for rows, seen in blocks(q.shape[1]):
            if mask is None:
                n_rows = rows.stop - rows.start
                later = q.new_full((n_rows, seen.stop), -torch.inf).triu(1 + rows.start)
                scores = torch.baddbmm(later, q[:, rows], k[:, seen].mT, alpha=scale)
            else:
                products = torch.bmm(q[:, rows], k[:, seen].mT).unflatten(0, (len(mask), -1))
                hidden = mask[:, None, rows, seen]  # broadcast over heads
                scores = torch.add(hidden, products, alpha=scale).flatten(0, 1)
            probabilities = scores.softmax(-1)
            context.append(torch.bmm(probabilities, v[:, seen]))
            if any(ctx.needs_input_grad):
                saved.append(probabilities)
        ctx.save_for_backward(q, k, v, *saved)
        ctx.scale = scale
        return context[0] if len(context) == 1 else torch.cat(context, dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *saved = ctx.saved_tensors
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (rows, seen), probabilities in zip(blocks(q.shape[1]), saved, strict=True):
            grad = grads[0][:, rows]
            grad_v[:, seen].baddbmm_(probabilities.mT, grad)
            grad_scores = torch.ops.aten._softmax_backward_data(
                torch.bmm(grad, v[:, seen].mT), probabilities, -1, q.dtype
            )
            grad_q[:, rows] = torch.bmm(grad_scores, k[:, seen])
            grad_k[:, seen].baddbmm_(grad_scores.mT, q[:, rows])
        return grad_q.mul_(ctx.scale), grad_k.mul_(ctx.scale), grad_v, None, None


def blocks(n_tokens: int) -> Iterator[tuple[slice, slice]]:
    """Slices of queries, each with the slice of keys up to its last query."""
    for first in range(0, n_tokens, ROWS):
        last = min(first + ROWS, n_tokens)
        yield slice(first, last), slice(0, last)
