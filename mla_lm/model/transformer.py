"""The decoder: embedding, blocks, final norm, head, and the MTP modules that share both ends.

B batch, T tokens, V vocabulary, k = 1..mtp_depth. All that a loss or metric needs is returned.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from mla_lm.config import Checkpointing, ModelConfig
from mla_lm.errors import UserError
from mla_lm.model.block import Block, run
from mla_lm.model.cache import Cache, LayerCache
from mla_lm.model.experts import Experts
from mla_lm.model.layers import KeepsFloat32, RMSNorm
from mla_lm.model.moe import MoE, Router, Routing
from mla_lm.model.mtp import MTPModule
from mla_lm.model.positions import Positions
from mla_lm.model.rope import rotary_tables

LOGITS = 2**24  # of `logits_in_parts` at once, unless a row has more


class ModelOutput(NamedTuple):
    """`mtp[k - 1]` and `routing` follow the order of depths and of `Transformer.routers()`."""

    hidden: Tensor  # (B, T, dim), after the final norm
    logits: Tensor | None  # (B, T, V); None when not asked for
    mtp: tuple[Tensor, ...]  # (B, T - k, dim): position i predicts token i + k + 1
    routing: tuple[Routing, ...]  # one per MoE layer that ran
    mtp_input: Tensor  # (B, T, dim), input of the first MTP module


class Transformer(KeepsFloat32):
    """`Transformer(cfg)(tokens)` with tokens (B, T) int64 -> `ModelOutput`."""

    cos: Tensor
    sin: Tensor

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.n_tokens = cfg.vocab_size  # a tokenizer may have fewer: the ids behind are padding
        self.embed = nn.Embedding(cfg.vocab_size, cfg.dim)
        self.blocks = nn.ModuleList(Block(cfg, layer) for layer in range(cfg.n_layers))
        self.norm = RMSNorm(cfg.dim, eps=cfg.norm_eps)
        self.lm_head = nn.Linear(cfg.dim, cfg.vocab_size, bias=False)
        if cfg.tie_embeddings:
            self.lm_head.weight = self.embed.weight
        self.mtp = nn.ModuleList(
            MTPModule(cfg, cfg.n_layers + depth) for depth in range(cfg.mtp_depth)
        )
        cos, sin = rotary_tables(cfg.max_seq_len, cfg.attention.rope_dim, cfg.rope)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.apply(self._init_weights)

    def forward(
        self,
        tokens: Tensor,
        *,
        documents: Tensor | None = None,
        cache: Cache | None = None,
        logits: bool = True,
        mtp: bool = True,
        checkpointing: Checkpointing = "none",
    ) -> ModelOutput:
        """Run the model; `logits=False` leaves out the head, `mtp=False` the MTP modules.

        With documents (B, T), the document index of each token, attention stays inside documents.
        With a cache the tokens are appended to the cached ones; MTP modules then run through
        `mtp_step` only. `checkpointing` saves only the input of each block for the backward pass,
        which recomputes the rest. Raises UserError beyond `max_seq_len` tokens.
        """
        n_tokens = tokens.shape[1]
        layers: Sequence[LayerCache | None] = [None] * len(self.blocks)
        if cache is None:
            at = self._from_start(n_tokens, documents)
        else:
            at, layers = cache.reserve(n_tokens, self.cos, self.sin), cache.layers
        x = embeddings = self.embed(tokens)  # (B, T, dim)
        routing = []
        for block, layer_cache in zip(self.blocks, layers, strict=True):
            x, block_routing = run(block, x, at=at, cache=layer_cache, checkpointing=checkpointing)
            routing.append(block_routing)
        hidden = self.norm(x)
        mtp_states = []
        state = mtp_input = hidden if self.cfg.mtp_input == "post_norm" else x
        for depth, module in enumerate(self.mtp if mtp and cache is None else (), start=1):
            length = max(0, n_tokens - depth)  # the last positions have no token that far ahead
            state, block_routing = run(
                module,
                state[:, :length],
                embeddings[:, depth:],
                at=self._from_start(length, None if documents is None else documents[:, :length]),
                checkpointing=checkpointing,
            )
            mtp_states.append(state)
            routing.append(block_routing)
        return ModelOutput(
            hidden,
            self.lm_head(hidden) if logits else None,
            tuple(mtp_states),
            tuple(r for r in routing if r is not None),
            mtp_input,
        )

    def compile_blocks(self, *, backend: str = "inductor") -> None:
        """Compile each block and MTP module with `torch.compile`, for training under this autocast.

        Experts run by `grouped_mm` are compiled with their block. Any other way depends on the
        number of tokens of each expert and stays outside the compiled parts.
        """
        torch._dynamo.config.optimize_ddp = False  # it cuts every block where a bucket ends
        for module in (*self.blocks, *self.mtp):
            module.compile(dynamic=False, backend=backend)
        for module in self.modules():
            if isinstance(module, Experts) and not module.grouped(self.matmul_dtype):
                module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]

    def shard_blocks(self, mesh: DeviceMesh) -> None:
        """Shard all weights over the ranks of `mesh` (FSDP2), gathered block by block."""
        for module in (*self.blocks, *self.mtp):
            fully_shard(module, mesh=mesh)
        fully_shard(self, mesh=mesh)

    def forward_tree(self, tokens: Tensor, positions: Tensor, seen: Tensor | None) -> Tensor:
        """Final hidden states (B, T, dim) of token trees: texts that share prefixes, one per row.

        tokens (B, T) are at positions (B, T). Token i attends to the tokens j with seen[b, i, j]
        (B, T, T), or without `seen` causally.
        """
        mask = None
        if seen is not None:  # additive, computed once for all layers
            mask = torch.zeros(seen.shape, dtype=self.matmul_dtype, device=seen.device)
            mask = mask.masked_fill_(~seen, -torch.inf).unsqueeze(1)
        at = Positions(self.cos[positions], self.sin[positions], mask)
        x = self.embed(tokens)
        for block in self.blocks:
            x, _ = run(block, x, at=at)
        return self.norm(x)

    def mtp_step(self, depth: int, state: Tensor, tokens: Tensor, *, cache: Cache) -> Tensor:
        """Run MTP module `depth` (from 1) on T more positions of its own cache: (B, T, dim).

        state (B, T, dim) is that of the depth before, or `ModelOutput.mtp_input`; tokens (B, T)
        has token i + depth at position i.
        """
        at = cache.reserve(tokens.shape[1], self.cos, self.sin)
        return self.mtp[depth - 1](state, self.embed(tokens), at, cache.layers[0])[0]

    def new_cache(
        self, batch_size: int, capacity: int, *, mtp: bool = False, absorb: bool | None = None
    ) -> Cache:
        """An empty cache of the main layers, or of one MTP module, in the dtype of the matmuls."""
        return Cache(
            self.cfg,
            n_layers=1 if mtp else self.cfg.n_layers,
            batch_size=batch_size,
            capacity=capacity,
            dtype=self.matmul_dtype,
            device=self.embed.weight.device,
            absorb=absorb,
        )

    def logits_in_parts(self, hidden: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Logits (b, T, V) of hidden (B, T, dim) and `others` (B, ...), a few rows at a time.

        With what a metric makes of them, all at once would take more memory than training.
        """
        n_rows = max(1, LOGITS // (hidden.shape[1] * self.cfg.vocab_size or 1))
        for rows, *more in zip(*(t.split(n_rows) for t in (hidden, *others)), strict=True):
            yield self.lm_head(rows), *more

    def greedy(self, hidden: Tensor) -> Tensor:
        """The most likely token behind each state: hidden (B, T, dim) -> (B, T)."""
        parts = self.logits_in_parts(hidden)
        return torch.cat([self.of_tokens(logits).argmax(-1) for (logits,) in parts])

    def of_tokens(self, logits: Tensor) -> Tensor:
        """Those of logits (..., V) that a choice may fall on: padding ids are never chosen."""
        return logits[..., : self.n_tokens]

    @property
    def matmul_dtype(self) -> torch.dtype:
        """The dtype of matrix products, autocast included."""
        weight = self.embed.weight
        if torch.is_autocast_enabled(weight.device.type):
            return torch.get_autocast_dtype(weight.device.type)
        return weight.dtype

    def _from_start(self, n_tokens: int, documents: Tensor | None) -> Positions:
        if n_tokens > self.cfg.max_seq_len:
            raise UserError(f"{n_tokens} tokens exceed model.max_seq_len={self.cfg.max_seq_len}")
        mask = None
        if documents is not None:  # causal within documents: (B, 1, T, T)
            mask = (documents[:, :, None] == documents[:, None, :]).tril().unsqueeze(1)
        return Positions(self.cos[:n_tokens], self.sin[:n_tokens], mask)

    def routers(self) -> dict[str, Router]:
        """`layer_N` and `mtp_K` to their routers, in the order of `ModelOutput.routing`."""
        blocks = {f"layer_{i}": block for i, block in enumerate(self.blocks)}
        for depth, module in enumerate(self.mtp, start=1):
            blocks[f"mtp_{depth}"] = cast(MTPModule, module).block
        return {name: b.ffn.router for name, b in blocks.items() if isinstance(b.ffn, MoE)}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal weights; those writing to the residual stream are scaled by depth (GPT-2)."""
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
