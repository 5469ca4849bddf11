"""One multi-token-prediction module (arXiv 2412.19437, section 2.2).

Depth k joins the state at position i with the embedding of token i + k and predicts token i + k + 1
through the main model's own embedding and head. The embedding comes first in the concatenation, as
in the released weights (the paper's text has it second).
"""

import torch
from torch import Tensor, nn

from mla_lm.config import ModelConfig
from mla_lm.model.block import Block
from mla_lm.model.cache import LayerCache
from mla_lm.model.layers import RMSNorm
from mla_lm.model.moe import Routing
from mla_lm.model.positions import Positions


class MTPModule(nn.Module):
    """Predicts one token beyond the depth before it."""

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.embed_norm = RMSNorm(cfg.dim, eps=cfg.norm_eps)
        self.hidden_norm = RMSNorm(cfg.dim, eps=cfg.norm_eps)
        self.proj = nn.Linear(2 * cfg.dim, cfg.dim, bias=False)
        self.block = Block(cfg, layer)
        self.norm = RMSNorm(cfg.dim, eps=cfg.norm_eps)

    def forward(
        self, hidden: Tensor, embedding: Tensor, at: Positions, cache: LayerCache | None = None
    ) -> tuple[Tensor, Routing | None]:
        """hidden at i, embedding of token i + k: both (B, T - k, dim) -> normed state."""
        x = self.proj(torch.cat((self.embed_norm(embedding), self.hidden_norm(hidden)), dim=-1))
        x, routing = self.block(x, at, cache)
        return self.norm(x), routing
