"""DeepSeekMoE (arXiv 2401.06066) with the sigmoid gate of DeepSeek-V3: route, dispatch, combine.

B batch, T tokens, N = B * T, E routed experts, K experts per token. Routing is returned, never
stored: `objective/balance.py` and `objective/losses.py` read it from the output.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mla_lm.config import MoEConfig
from mla_lm.model.experts import Experts
from mla_lm.model.layers import KeepsFloat32, SwiGLU


class Routing(NamedTuple):
    """The routing decisions of one MoE layer, for balancing and metrics."""

    scores: Tensor  # (B, T, E) float32, unbiased sigmoid scores, with gradient
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
        experts = self.round_robin(scores) if moe.force_balance else self.best(scores.detach())
        weights = scores.gather(-1, experts)  # unbiased
        if moe.norm_topk:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return Routing(scores, experts), weights * moe.route_scale

    def best(self, scores: Tensor) -> Tensor:
        """The experts (B, T, K) of highest score (B, T, E) + bias, within the best groups."""
        choice = self.keep_best_groups(scores + self.e_score_correction_bias)
        return choice.topk(self.moe.n_activated_experts, dim=-1, sorted=False).indices

    def round_robin(self, scores: Tensor) -> Tensor:
        """Round-robin experts (B, T, K) whatever the scores: an upper bound of throughput."""
        batch, n_tokens, n_experts = scores.shape
        top_k = self.moe.n_activated_experts
        experts = torch.arange(batch * n_tokens * top_k, device=scores.device) % n_experts
        return experts.view(batch, n_tokens, top_k)

    def keep_best_groups(self, choice: Tensor) -> Tensor:
        """Set to -inf the experts outside the `topk_groups` groups with the best top-2 sums."""
        if self.moe.n_groups == 1:
            return choice
        grouped = choice.unflatten(-1, (self.moe.n_groups, -1))  # (B, T, groups, E / groups)
        group_scores = grouped.topk(2, dim=-1).values.sum(dim=-1)
        kept = group_scores.topk(self.moe.topk_groups, dim=-1, sorted=False).indices
        dropped = torch.ones_like(group_scores, dtype=torch.bool).scatter(-1, kept, False)
        return grouped.masked_fill(dropped.unsqueeze(-1), -torch.inf).flatten(-2)


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
