"""The decoder: embedding, blocks, final norm, head, and the MTP modules that share both ends.

B batch, T tokens, V vocabulary, k = 1..mtp_depth. Everything a loss or a metric needs is returned.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from mla_lm.config import ModelConfig
from mla_lm.errors import UserError
from mla_lm.model.block import Block
from mla_lm.model.moe import Experts, MoE, Router, Routing
from mla_lm.model.mtp import MTPModule
from mla_lm.model.norm import RMSNorm
from mla_lm.model.rope import rotary_tables


class ModelOutput(NamedTuple):
    """`mtp[k - 1]` and `routing` follow the order of depths and of `Transformer.routers()`."""

    hidden: Tensor  # (B, T, dim), after the final norm
    logits: Tensor | None  # (B, T, V); None when not asked for
    mtp: tuple[Tensor, ...]  # (B, T - k, dim): position i is to predict token i + k + 1
    routing: tuple[Routing, ...]  # one per MoE layer that ran


class Transformer(nn.Module):
    """`Transformer(cfg)(tokens)` with tokens (B, T) int64 -> `ModelOutput`."""

    cos: Tensor
    sin: Tensor

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.vocab_size, cfg.dim)
        self.blocks = nn.ModuleList(Block(cfg, layer) for layer in range(cfg.n_layers))
        self.norm = RMSNorm(cfg.dim, eps=cfg.norm_eps)
        self.lm_head = nn.Linear(cfg.dim, cfg.vocab_size, bias=False)
        if cfg.tie_embeddings:
            self.lm_head.weight = self.embed.weight
        self.mtp = nn.ModuleList(
            MTPModule(cfg, cfg.n_layers + depth) for depth in range(cfg.mtp_depth)
        )
        cos, sin = rotary_tables(cfg.max_seq_len, cfg.attention.rope_dim, theta=cfg.rope.theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.apply(self._init_weights)

    def forward(
        self,
        tokens: Tensor,
        *,
        documents: Tensor | None = None,
        logits: bool = True,
        mtp: bool = True,
    ) -> ModelOutput:
        """Run the model; `logits=False` leaves out the head, `mtp=False` the MTP modules.

        With documents (B, T), the number of the document a token belongs to, attention stays
        inside a document. Raises UserError when T exceeds `max_seq_len`.
        """
        n_tokens = tokens.shape[1]
        if n_tokens > self.cfg.max_seq_len:
            raise UserError(f"{n_tokens} tokens exceed model.max_seq_len={self.cfg.max_seq_len}")
        cos, sin = self.cos[:n_tokens], self.sin[:n_tokens]
        mask = None if documents is None else _within(documents)
        x = embeddings = self.embed(tokens)  # (B, T, dim)
        routing = []
        for block in self.blocks:
            x, block_routing = block(x, cos, sin, mask)
            routing.append(block_routing)
        hidden = self.norm(x)

        mtp_states = []
        state = hidden if self.cfg.mtp_input == "post_norm" else x
        for depth, module in enumerate(self.mtp if mtp else (), start=1):
            length = max(0, n_tokens - depth)  # later positions know no token that far ahead
            state, block_routing = module(
                state[:, :length],
                embeddings[:, depth:],
                cos[:length],
                sin[:length],
                None if mask is None else mask[..., :length, :length],
            )
            mtp_states.append(state)
            routing.append(block_routing)
        return ModelOutput(
            hidden,
            self.lm_head(hidden) if logits else None,
            tuple(mtp_states),
            tuple(r for r in routing if r is not None),
        )

    def routers(self) -> list[Router]:
        """The routers in the order of `ModelOutput.routing`."""
        blocks = [*self.blocks, *(cast(MTPModule, module).block for module in self.mtp)]
        return [block.ffn.router for block in blocks if isinstance(block.ffn, MoE)]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal weights; those that write to the residual stream shrink with depth (GPT-2)."""
        std = self.cfg.init_std
        residual_std = std / (2 * self.cfg.n_layers) ** 0.5
        if isinstance(module, nn.Linear | nn.Embedding | Router):
            module.weight.normal_(std=std)
        elif isinstance(module, Experts):
            module.gate_up_proj.normal_(std=std)
            module.down_proj.normal_(std=residual_std)
        for name in ("o_proj", "down_proj"):
            if isinstance(child := getattr(module, name, None), nn.Linear):
                child.weight.normal_(std=residual_std)


def _within(documents: Tensor) -> Tensor:
    """Earlier tokens of the same document: (B, T) -> (B, 1, T, T) bool."""
    return (documents[:, :, None] == documents[:, None, :]).tril().unsqueeze(1)
