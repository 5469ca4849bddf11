"""E SwiGLU experts with stacked weights, and four implementations of running them.

N tokens, K experts per token; slot s of the N * K belongs to token s // K. All implementations
compute the same function; `loop` is the reference.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mla_lm.config import MoEConfig

# Row counts are rounded up to a multiple of this: oneDNN builds a kernel for every new matrix shape
# (about 2.5 ms on a CPU with AMX), and tokens per expert change in every step.
ROW_BLOCK = 64
ALIGNED = 8  # widths in bfloat16 that `grouped_mm` takes: multiples of 16 bytes


class Experts(nn.Module):
    """E SwiGLU experts; gate and up projection share one matrix per expert."""

    def __init__(self, dim: int, moe: MoEConfig) -> None:
        super().__init__()
        n_experts, inter_dim = moe.n_routed_experts, moe.moe_inter_dim
        self.execution = moe.execution
        self.gate_up_proj = nn.Parameter(torch.empty(n_experts, 2 * inter_dim, dim))
        self.down_proj = nn.Parameter(torch.empty(n_experts, dim, inter_dim))

    def grouped(self, dtype: torch.dtype) -> bool:
        """Whether many tokens of `dtype` are run by `grouped_mm`."""
        if self.execution == "auto":
            return grouped_is_fast(self.gate_up_proj, dtype)
        return self.execution == "grouped_mm"

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum over the chosen experts: x (N, dim), experts, weights (N, K) -> (N, dim)."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        inputs = x.to(dtype)
        matrices: list[Tensor] = [self.gate_up_proj, self.down_proj]
        way = fastest(inputs, matrices[0]) if self.execution == "auto" else self.execution
        if way != "few_tokens":  # there autocast casts only the chosen experts
            matrices = [matrix.to(dtype) for matrix in matrices]
        return WAYS[way](inputs, experts, weights, *matrices).type_as(x)


def fastest(x: Tensor, gate_up: Tensor) -> str:
    """The fastest implementation for x (N, dim) and gate_up (E, 2 * inter_dim, dim).

    For few tokens `grouped_mm` is slower where all experts must be cast first.
    """
    few = 0 < len(x) < ROW_BLOCK
    if grouped_is_fast(gate_up, x.dtype) and not (few and gate_up.dtype != x.dtype):
        return "grouped_mm"
    return "few_tokens" if few else "padded"


def grouped_is_fast(gate_up: Tensor, dtype: torch.dtype) -> bool:
    """Whether torch has a kernel for `grouped_mm` here, and no loop with a host sync.

    On sm100 gradients of experts without tokens may not be zero (pytorch#172439).
    """
    aligned = gate_up.shape[1] % (2 * ALIGNED) == gate_up.shape[2] % ALIGNED == 0
    if gate_up.device.type != "cuda" or dtype != torch.bfloat16 or not aligned:
        return False
    return torch.cuda.get_device_capability(gate_up.device)[0] == 9


def loop(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The reference: expert by expert, as in the equation."""
    y = torch.zeros_like(x, dtype=weights.dtype)
    for expert in range(len(gate_up)):
        token, place = (experts == expert).nonzero(as_tuple=True)
        gate, up = F.linear(x[token], gate_up[expert]).chunk(2, dim=-1)
        outputs = F.linear(F.silu(gate) * up, down[expert])
        y = y.index_add(0, token, outputs * weights[token, place].unsqueeze(-1))
    return y


def few_tokens(
    x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """For decoding, which is bound by reading weights: the chosen experts only, no padding."""
    chosen, top_k = experts.flatten().tolist(), experts.shape[1]
    order = sorted(range(len(chosen)), key=chosen.__getitem__)  # slots grouped by expert
    touched = sorted(set(chosen))
    sizes = [chosen.count(expert) for expert in touched]
    slots = torch.tensor(order, device=x.device)
    token = slots // top_k
    rows = zip(x[token].split(sizes), touched, strict=True)
    h = torch.cat([F.linear(part, gate_up[expert]) for part, expert in rows])
    gate, up = h.chunk(2, dim=-1)
    rows = zip((F.silu(gate) * up).split(sizes), touched, strict=True)
    y = torch.cat([F.linear(part, down[expert]) for part, expert in rows])
    weighted = y * weights.flatten()[slots].unsqueeze(-1)
    return torch.zeros_like(x, dtype=weighted.dtype).index_add(0, token, weighted)


def grouped_mm(
    x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """One kernel for all experts, without a host sync; fast in bfloat16 on sm90."""
    n_tokens, top_k = experts.shape
    chosen = experts.flatten()
    order = chosen.argsort(stable=True)  # slots grouped by expert
    counts = tokens_of_experts(chosen, len(gate_up))
    ends = counts.cumsum(0).to(torch.int32)
    h = F.grouped_mm(x[order // top_k], gate_up.mT, offs=ends)
    gate, up = h.chunk(2, dim=-1)
    y = F.grouped_mm(F.silu(gate) * up, down.mT, offs=ends)
    y = y[order.argsort()].view(n_tokens, top_k, -1)
    return (y * weights.unsqueeze(-1)).sum(dim=1)


def padded(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """For training on a CPU: rows per expert are padded to a multiple of `ROW_BLOCK`."""
    y: Tensor = Padded.apply(x, experts, weights, gate_up, down)  # type: ignore[no-untyped-call]
    return y


class Padded(torch.autograd.Function):
    """`padded`, with a backward pass that gathers where autograd would scatter.

    R rows grouped by expert: `token` (R,) is the token of a row (N: padding), `place` (N, K) the
    row of a slot. Each expert runs to its outputs while its rows are in the CPU's cache; only the
    gate and up activations are saved for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor
    ) -> Tensor:
        token, place, sizes = layout(experts, len(gate_up))
        rows = F.pad(x, (0, 0, 0, 1))  # padding reads a row of zeros
        h = x.new_empty(len(token), gate_up.shape[1])
        outputs = x.new_empty(len(token), x.shape[1])
        parts = zip(token.split(sizes), h.split(sizes), outputs.split(sizes), strict=True)
        for expert, (who, hidden, out) in enumerate(parts):
            torch.mm(rows.index_select(0, who), gate_up[expert].T, out=hidden)
            gate, up = hidden.chunk(2, dim=-1)
            torch.mm(F.silu(gate) * up, down[expert].T, out=out)
        ctx.save_for_backward(x, weights, gate_up, down, token, place, h)
        ctx.sizes = sizes
        y = torch.zeros_like(x, dtype=weights.dtype)
        for k in range(place.shape[1]):
            y.addcmul_(outputs.index_select(0, place[:, k]), weights[:, k : k + 1])
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, gate_up, down, token, place, h = ctx.saved_tensors
        rows, grad_rows = (F.pad(t, (0, 0, 0, 1)) for t in (x, grads[0].type_as(x)))
        weight = weights.new_zeros(len(token)).index_copy_(0, place.flatten(), weights.flatten())
        grad_inputs = x.new_empty(len(token), x.shape[1])
        grad_weight = torch.empty_like(weight)
        grad_gate_up, grad_down = torch.empty_like(gate_up), torch.empty_like(down)
        parts = (t.split(ctx.sizes) for t in (token, h, weight, grad_inputs, grad_weight))
        for expert, (who, hidden, w, grad_in, grad_w) in enumerate(zip(*parts, strict=True)):
            gate, up = hidden.chunk(2, dim=-1)
            silu, grad_out = F.silu(gate), grad_rows.index_select(0, who)
            activated, w = silu * up, w.unsqueeze(-1).type_as(x)
            grad = grad_out @ down[expert]  # of the activation, before weighting
            torch.sum(grad * activated, dim=-1, dtype=weight.dtype, out=grad_w)
            torch.mm(grad_out.T, activated * w, out=grad_down[expert])
            grad = grad * w
            grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
            grad_hidden = torch.cat((grad_gate, grad * silu), dim=-1)
            torch.mm(grad_hidden, gate_up[expert], out=grad_in)
            torch.mm(grad_hidden.T, rows.index_select(0, who), out=grad_gate_up[expert])
        grad_x = torch.zeros_like(x, dtype=weights.dtype)
        for k in range(place.shape[1]):
            grad_x += grad_inputs.index_select(0, place[:, k])
        return grad_x.type_as(x), None, grad_weight[place], grad_gate_up, grad_down


def layout(experts: Tensor, n_experts: int) -> tuple[Tensor, Tensor, list[int]]:
    """For `Padded`: token (R,), place (N, K), and the number of rows per expert."""
    n_tokens, top_k = experts.shape
    chosen = experts.flatten()
    order = chosen.argsort(stable=True)  # slots grouped by expert
    counts = tokens_of_experts(chosen, n_experts)
    sizes = (counts + ROW_BLOCK - 1) // ROW_BLOCK * ROW_BLOCK
    shift = (sizes.cumsum(0) - sizes) - (counts.cumsum(0) - counts)
    rows = torch.arange(len(order), device=experts.device) + shift[chosen[order]]
    place = torch.empty_like(order).index_copy_(0, order, rows).view(n_tokens, top_k)
    n_rows = sizes.tolist()
    token = order.new_full((sum(n_rows),), n_tokens).index_copy_(0, rows, order // top_k)
    return token, place, n_rows


def tokens_of_experts(chosen: Tensor, n_experts: int) -> Tensor:
    """(n_experts,) int64; a GPU would wait twice for `bincount` to find the size."""
    return chosen.new_zeros(n_experts).scatter_add_(0, chosen, torch.ones_like(chosen))


WAYS = {"loop": loop, "padded": padded, "grouped_mm": grouped_mm, "few_tokens": few_tokens}
