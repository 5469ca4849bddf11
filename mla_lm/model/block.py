"""Pre-norm residual block: attention, then a dense or mixture-of-experts feed-forward layer."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mla_lm.config import Checkpointing, ModelConfig, MoEConfig
from mla_lm.model.attention import build_attention
from mla_lm.model.cache import LayerCache
from mla_lm.model.layers import RMSNorm, SwiGLU
from mla_lm.model.moe import MoE, Routing
from mla_lm.model.positions import Positions

Run = Callable[..., tuple[Tensor, Routing | None]]


class Block(nn.Module):
    """(B, T, dim) -> (B, T, dim) and the routing of its experts (None: a dense layer)."""

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(cfg.dim, eps=cfg.norm_eps)
        self.attention = build_attention(cfg)
        self.ffn_norm = RMSNorm(cfg.dim, eps=cfg.norm_eps)
        if isinstance(cfg.ffn, MoEConfig) and cfg.is_moe(layer):
            self.ffn: nn.Module = MoE(cfg.dim, cfg.ffn)
        else:
            self.ffn = SwiGLU(cfg.dim, cfg.inter_dim)

    def forward(
        self, x: Tensor, at: Positions, cache: LayerCache | None = None
    ) -> tuple[Tensor, Routing | None]:
        x = x + self.attention(self.attention_norm(x), at, cache)
        y = self.ffn(self.ffn_norm(x))
        y, routing = y if isinstance(y, tuple) else (y, None)
        return x + y, routing


def run(
    module: nn.Module,
    *inputs: Tensor,
    at: Positions,
    cache: LayerCache | None = None,
    checkpointing: Checkpointing = "none",
) -> tuple[Tensor, Routing | None]:
    """`module(*inputs, at, cache)`; with checkpointing the backward pass recomputes activations.

    Compiled code is for training only: without gradients shapes change from call to call.
    """
    if checkpointing == "none" or not torch.is_grad_enabled():
        call: Run = module if torch.is_grad_enabled() else module._call_impl
        return call(*inputs, at, cache)

    def flat(*inputs: Tensor) -> tuple[Tensor, ...]:  # re-entrant: gradients of tensors only
        y, routing = module(*inputs, at)
        return (y, *(routing or ()))

    reentrant = checkpointing == "reentrant"
    y, *routing = checkpoint(flat, *inputs, use_reentrant=reentrant, preserve_rng_state=False)
    return y, Routing(*routing) if routing else None
