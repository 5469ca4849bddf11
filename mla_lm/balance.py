"""Balancing experts without an auxiliary loss (arXiv 2408.15664): load, metrics, bias update.

Pure functions. L MoE layers (MTP blocks included), E experts. The update belongs once to each
optimizer step, with the load of the whole global batch: every rank and every micro-batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mla_lm.model.moe import Routing


def expert_load(routing: Sequence[Routing]) -> Tensor:
    """Tokens each expert received: (L, E) int64."""
    return torch.stack(
        [layer.experts.flatten().bincount(minlength=layer.scores.shape[-1]) for layer in routing]
    )


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


def dead_experts(load: Tensor) -> Tensor:
    """How many experts received no token, over all layers: integer scalar."""
    return (load == 0).sum()
