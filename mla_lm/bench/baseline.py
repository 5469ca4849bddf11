"""nanoGPT's model, written anew: the plain dense Transformer of GPT-2 as a reference.

LayerNorm without biases, learned positions, GELU, tied embeddings. B batch, T tokens, V vocabulary.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mla_lm.machine import Resolved, autocast


class Shape(NamedTuple):
    """The sizes of a `DenseModel`."""

    vocab_size: int
    seq_len: int
    dim: int = 256
    n_layers: int = 6
    n_heads: int = 4


class DenseModel(nn.Module):
    """tokens (B, T) -> logits (B, T, V)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed = nn.Embedding(shape.vocab_size, shape.dim)
        self.position = nn.Embedding(shape.seq_len, shape.dim)
        self.blocks = nn.ModuleList(DenseBlock(shape) for _ in range(shape.n_layers))
        self.norm = nn.LayerNorm(shape.dim, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                into_stream = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / (2 * shape.n_layers) ** 0.5 if into_stream else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embed.weight)


class DenseBlock(nn.Module):
    """Attention and a feed-forward layer four times as wide, each behind a norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        dim, self.n_heads = shape.dim, shape.n_heads
        self.attention_norm, self.ffn_norm = (nn.LayerNorm(dim, bias=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.up, self.down = (
            nn.Linear(dim, 4 * dim, bias=False),
            nn.Linear(4 * dim, dim, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.n_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # (B, H, T, width)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(heads.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.ffn_norm(x))))


def optimizer(
    model: nn.Module, lr: float, betas: tuple[float, float] = (0.9, 0.95)
) -> torch.optim.Optimizer:
    """AdamW with nanoGPT's decay: matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tokens: Tensor,
    lr: float,
    precision: Resolved,
) -> None:
    """One step on tokens (B, T + 1)."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    with autocast(precision, "cpu"):
        logits = model(tokens[:, :-1])
    F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
