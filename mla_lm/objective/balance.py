"""Balancing experts: load, metrics, and bias updates without an auxiliary loss (arXiv 2408.15664).

Pure functions. B rows, T tokens, L MoE layers (MTP blocks included), E experts, K experts per
token. Biases are updated once per optimizer step from the load of the global batch: all ranks, all
micro-batches, padding excluded.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mla_lm.model.moe import Routing


def expert_load(routing: Sequence[Routing], counted: Tensor | None = None) -> Tensor:
    """Tokens each expert received in each row: (L, B, E) int64.

    counted (B, T) bool is False for padding; None: everything counts.
    """
    return torch.stack(
        [count(r.experts, r.scores.shape[-1], of_layer(r, counted)) for r in routing]
    )


def of_layer(layer: Routing, counted: Tensor | None) -> Tensor | None:
    """Which positions of a layer count, from `counted` (B, T) of the input tokens.

    An MTP block of depth k has T - k positions; position i joins the tokens i and i + k.
    """
    if counted is None:
        return None
    n_positions = layer.scores.shape[1]
    return counted[:, :n_positions] & counted[:, counted.shape[1] - n_positions :]


def count(experts: Tensor, n_experts: int, counted: Tensor | None) -> Tensor:
    """Tokens per row and expert from experts (B, T, K): (B, E) int64."""
    once = torch.ones_like(experts)
    if counted is not None:
        once = once * counted.unsqueeze(-1)
    counts = experts.new_zeros(len(experts), n_experts)
    return counts.scatter_add_(1, experts.flatten(1), once.flatten(1))


def update_bias(bias: Tensor, load: Tensor, *, speed: float) -> None:
    """Move `bias` (E,) in place towards equal `load` (E,), then centre it.

    b_i += speed * sign(mean(c) - c_i). A common offset changes no selection, so removing the mean
    only stops the drift that released biases show.
    """
    total = load.sum()
    bias += speed * torch.sign(total - load * load.numel())  # integers: an equal load is exactly 0
    bias -= bias.mean()


def max_violation(load: Tensor) -> Tensor:
    """max(c) / mean(c) - 1 over the experts: (..., E) -> (...) float32; 0 is balance."""
    load = load.float()
    return load.amax(dim=-1) / load.mean(dim=-1).clamp(min=1e-9) - 1


def load_entropy(load: Tensor) -> Tensor:
    """Entropy of the load over its maximum: (..., E) -> (...) float32; 1 is balance."""
    share = load / load.sum(dim=-1, keepdim=True).clamp(min=1)
    highest = math.log(load.shape[-1])
    missing = highest - torch.special.entr(share).sum(dim=-1)
    return 1 - missing / max(highest, 1e-9)  # a single expert is in balance


def dead_experts(load: Tensor) -> Tensor:
    """Number of experts without a token: (..., E) -> (...) int64."""
    return (load == 0).sum(dim=-1)
