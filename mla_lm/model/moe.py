"""DeepSeekMoE (arXiv 2401.06066) with the sigmoid gate of DeepSeek-V3: route, dispatch, combine.

B batch, T tokens, N = B * T, E routed experts, K experts a token. Routing is returned, never
stored: `balance.py` and `losses.py` read it from the output.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mla_lm.config import MoEConfig
from mla_lm.model.ffn import SwiGLU
from mla_lm.model.float32 import KeepsFloat32

# Row counts are rounded up to a multiple of this: oneDNN builds a kernel for every new matrix shape
# (about 2.5 ms on a CPU with AMX), and tokens per expert differ in every step.
ROW_BLOCK = 64


class Routing(NamedTuple):
    """What one MoE layer decided, for balancing and metrics."""

    scores: Tensor  # (B, T, E) float32, unbiased sigmoid scores; carries gradient
    experts: Tensor  # (B, T, K) int64, the chosen experts


class Router(KeepsFloat32):
    """Sigmoid gate with a bias that moves selection only (arXiv 2412.19437, eq. 12-16).

    `e_score_correction_bias` is a float32 buffer without gradient; `balance.update_bias` moves it.
    """

    e_score_correction_bias: Tensor

    def __init__(self, dim: int, moe: MoEConfig) -> None:
        super().__init__()
        self.moe = moe
        self.weight = nn.Parameter(torch.empty(moe.n_routed_experts, dim))
        self.register_buffer(
            "e_score_correction_bias", torch.zeros(moe.n_routed_experts, dtype=torch.float32)
        )

    def forward(self, x: Tensor) -> tuple[Routing, Tensor]:
        """x (B, T, dim) -> the routing and the weights (B, T, K) of the chosen experts."""
        moe = self.moe
        with torch.autocast(x.device.type, enabled=False):  # bf16 scores would tie and flip experts
            scores = F.linear(x.float(), self.weight.float()).sigmoid()  # (B, T, E)
        choice = self.keep_best_groups(scores.detach() + self.e_score_correction_bias)
        experts = choice.topk(moe.n_activated_experts, dim=-1, sorted=False).indices
        weights = scores.gather(-1, experts)  # unbiased
        if moe.norm_topk:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return Routing(scores, experts), weights * moe.route_scale

    def keep_best_groups(self, choice: Tensor) -> Tensor:
        """Exclude (-inf) the experts outside the `topk_groups` groups with the best two experts."""
        if self.moe.n_groups == 1:
            return choice
        grouped = choice.unflatten(-1, (self.moe.n_groups, -1))  # (B, T, groups, E / groups)
        group_scores = grouped.topk(2, dim=-1).values.sum(dim=-1)
        kept = group_scores.topk(self.moe.topk_groups, dim=-1, sorted=False).indices
        dropped = torch.ones_like(group_scores, dtype=torch.bool).scatter(-1, kept, False)
        return grouped.masked_fill(dropped.unsqueeze(-1), -torch.inf).flatten(-2)


class Experts(nn.Module):
    """E SwiGLU experts with stacked weights, gate and up in one."""

    def __init__(self, dim: int, moe: MoEConfig) -> None:
        super().__init__()
        n_experts, inter_dim = moe.n_routed_experts, moe.moe_inter_dim
        self.gate_up_proj = nn.Parameter(torch.empty(n_experts, 2 * inter_dim, dim))
        self.down_proj = nn.Parameter(torch.empty(n_experts, dim, inter_dim))

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum over the chosen: x (N, dim), experts and weights (N, K) -> (N, dim)."""
        run = self.few_tokens if 0 < len(x) < ROW_BLOCK else self.padded
        return run(x, experts, weights)

    def few_tokens(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """For decoding, which waits for weights: only the chosen experts, and no padding."""
        chosen, top_k = experts.flatten().tolist(), experts.shape[1]
        order = sorted(range(len(chosen)), key=chosen.__getitem__)  # slots grouped by expert
        touched = sorted(set(chosen))
        sizes = [chosen.count(expert) for expert in touched]
        slots = torch.tensor(order, device=x.device)
        token = slots // top_k
        rows = zip(x[token].split(sizes), touched, strict=True)
        h = torch.cat([F.linear(part, self.gate_up_proj[expert]) for part, expert in rows])
        gate, up = h.chunk(2, dim=-1)
        h = F.silu(gate) * up
        rows = zip(h.split(sizes), touched, strict=True)
        y = torch.cat([F.linear(part, self.down_proj[expert]) for part, expert in rows])
        weighted = y * weights.flatten()[slots].unsqueeze(-1)
        return torch.zeros_like(x, dtype=weighted.dtype).index_add(0, token, weighted).type_as(x)

    def padded(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """For training, which waits for arithmetic: each expert gets blocks of `ROW_BLOCK` rows."""
        n_experts, top_k = self.gate_up_proj.shape[0], experts.shape[1]
        chosen = experts.flatten()  # (N * K): slot s belongs to token s // K
        order = chosen.argsort(stable=True)  # slots grouped by expert
        counts = chosen.bincount(minlength=n_experts)
        padded = (counts + ROW_BLOCK - 1) // ROW_BLOCK * ROW_BLOCK
        shift = (padded.cumsum(0) - padded) - (counts.cumsum(0) - counts)
        rows = torch.arange(order.numel(), device=x.device) + shift[chosen[order]]

        token = order // top_k
        sizes = padded.tolist()
        inputs = x.new_zeros(sum(sizes), x.shape[1]).index_copy(0, rows, x[token])
        outputs = torch.cat(
            [
                self.swiglu(chunk, gate_up, down)
                for chunk, gate_up, down in zip(
                    inputs.split(sizes), self.gate_up_proj, self.down_proj, strict=True
                )
            ]
        )  # (padded rows, dim)
        weighted = outputs[rows] * weights.flatten()[order].unsqueeze(-1)
        return torch.zeros_like(x, dtype=weighted.dtype).index_add(0, token, weighted).type_as(x)

    @staticmethod
    def swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        """One expert: x (rows, dim), gate_up (2 * inter_dim, dim), down (dim, inter_dim)."""
        gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, down)


class MoE(nn.Module):
    """y = sum_i w_i expert_i(x) + shared(x); returns y (B, T, dim) and the `Routing`."""

    def __init__(self, dim: int, moe: MoEConfig) -> None:
        super().__init__()
        self.router = Router(dim, moe)
        self.experts = Experts(dim, moe)
        shared_dim = moe.n_shared_experts * moe.moe_inter_dim
        self.shared_experts = SwiGLU(dim, shared_dim) if shared_dim else None

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        routing, weights = self.router(x)
        y = self.experts(x.flatten(0, 1), routing.experts.flatten(0, 1), weights.flatten(0, 1))
        y = y.view_as(x)
        if self.shared_experts is not None:
            y = y + self.shared_experts(x)
        return y, routing
