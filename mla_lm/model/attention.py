"""Causal self-attention: MLA (arXiv 2405.04434, eq. 9-19) and its baselines MHA, GQA and MQA.

B batch, T tokens, H query heads, G key/value heads. Every kind is called alike:
`attention(x, cos, sin, mask)` with x (B, T, dim), rotary tables (T, rope_dim / 2), and a mask
(B, 1, T, T) of what may be attended to, or None for all that came before.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mla_lm.config import GroupedAttentionConfig, MLAConfig, ModelConfig
from mla_lm.model.norm import RMSNorm
from mla_lm.model.rope import rotate

LATENT_NORM_EPS = 1e-6  # hard-wired in the released implementations, whatever the model's norm_eps


class MultiHeadLatentAttention(nn.Module):
    """MLA: keys and values come from one small latent, positions ride on one shared key.

    What a cache needs per token is `kv_lora_rank + qk_rope_head_dim` numbers.
    """

    def __init__(self, cfg: ModelConfig, mla: MLAConfig) -> None:
        super().__init__()
        self.n_heads = cfg.n_heads
        self.nope_dim, self.rope_dim = mla.qk_nope_head_dim, mla.qk_rope_head_dim
        self.qk_dim, self.v_dim = self.nope_dim + self.rope_dim, mla.v_head_dim
        self.kv_lora_rank = mla.kv_lora_rank

        if mla.q_lora_rank is None:
            self.q_proj = nn.Linear(cfg.dim, cfg.n_heads * self.qk_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(cfg.dim, mla.q_lora_rank, bias=False)
            self.q_a_norm = RMSNorm(mla.q_lora_rank, eps=LATENT_NORM_EPS)
            self.q_b_proj = nn.Linear(mla.q_lora_rank, cfg.n_heads * self.qk_dim, bias=False)
        self.compress_q = mla.q_lora_rank is not None
        self.kv_a_proj = nn.Linear(cfg.dim, self.kv_lora_rank + self.rope_dim, bias=False)
        self.kv_a_norm = RMSNorm(self.kv_lora_rank, eps=LATENT_NORM_EPS)
        self.kv_b_proj = nn.Linear(
            self.kv_lora_rank, cfg.n_heads * (self.nope_dim + self.v_dim), bias=False
        )
        self.o_proj = nn.Linear(cfg.n_heads * self.v_dim, cfg.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None) -> Tensor:
        q = self.q_b_proj(self.q_a_norm(self.q_a_proj(x))) if self.compress_q else self.q_proj(x)
        q = q.unflatten(-1, (self.n_heads, self.qk_dim))  # (B, T, H, qk_dim)
        q_nope, q_rope = q.split((self.nope_dim, self.rope_dim), dim=-1)

        latent, k_rope = self.kv_a_proj(x).split((self.kv_lora_rank, self.rope_dim), dim=-1)
        kv = self.kv_b_proj(self.kv_a_norm(latent))
        kv = kv.unflatten(-1, (self.n_heads, self.nope_dim + self.v_dim))
        k_nope, v = kv.split((self.nope_dim, self.v_dim), dim=-1)  # (B, T, H, nope_dim | v_dim)

        k_rope = rotate(k_rope.unsqueeze(-2), cos, sin).expand(-1, -1, self.n_heads, -1)
        q = torch.cat((q_nope, rotate(q_rope, cos, sin)), dim=-1)
        k = torch.cat((k_nope, k_rope), dim=-1)
        return self.o_proj(causal_attention(q, k, v, mask))


class GroupedQueryAttention(nn.Module):
    """MHA, GQA and MQA. The leading `rope_head_dim` numbers of a head are rotated."""

    def __init__(self, cfg: ModelConfig, gqa: GroupedAttentionConfig) -> None:
        super().__init__()
        self.head_dim, self.rope_dim = gqa.head_dim, gqa.rope_head_dim
        self.q_proj = nn.Linear(cfg.dim, cfg.n_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(cfg.dim, gqa.n_kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(cfg.dim, gqa.n_kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(cfg.n_heads * self.head_dim, cfg.dim, bias=False)

        def norm() -> nn.Module:
            return RMSNorm(self.head_dim, eps=cfg.norm_eps) if gqa.qk_norm else nn.Identity()

        self.q_norm, self.k_norm = norm(), norm()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim))  # (B, T, H | G, head_dim)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q = self._rotate_part(self.q_norm(q), cos, sin)
        k = self._rotate_part(self.k_norm(k), cos, sin)
        return self.o_proj(causal_attention(q, k, v, mask))

    def _rotate_part(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rope, nope = x.split((self.rope_dim, self.head_dim - self.rope_dim), dim=-1)
        return torch.cat((rotate(rope, cos, sin), nope), dim=-1)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(qk_dim)) v under the causal or a given mask -> (B, T, H * v_dim).

    q (B, T, H, qk_dim), k (B, T, G, qk_dim), v (B, T, G, v_dim); G divides H.
    """
    v_dim = v.shape[-1]
    if v_dim < q.shape[-1]:  # flash kernels want equal widths; zero columns change nothing
        v = F.pad(v, (0, q.shape[-1] - v_dim))
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    context = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1]
    )
    return context[..., :v_dim].transpose(1, 2).flatten(-2)


def build_attention(cfg: ModelConfig) -> nn.Module:
    """The attention layer that `cfg.attention.kind` names."""
    if isinstance(cfg.attention, MLAConfig):
        return MultiHeadLatentAttention(cfg, cfg.attention)
    return GroupedQueryAttention(cfg, cfg.attention)
