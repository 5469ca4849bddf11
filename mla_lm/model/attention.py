"""Causal self-attention: MLA (arXiv 2405.04434, eq. 9-19) and its baselines MHA, GQA and MQA.

B batch, T new tokens, L tokens attended to (T without a cache), H query heads, G key/value heads.
Every kind is called as `attention(x, at, cache)`: x (B, T, dim), the `Positions` of its tokens, and
the layer's KV cache, if any.
"""

import torch
from torch import Tensor, nn

from mla_lm.config import GroupedAttentionConfig, MLAConfig, ModelConfig, RopeConfig, YarnConfig
from mla_lm.model.attend import attend
from mla_lm.model.cache import LayerCache
from mla_lm.model.layers import RMSNorm
from mla_lm.model.positions import Positions
from mla_lm.model.rope import rotate

LATENT_NORM_EPS = 1e-6  # hard-wired in the released implementations, whatever the model's norm_eps


class MultiHeadLatentAttention(nn.Module):
    """MLA: one small latent yields the keys and values, one shared key carries the position.

    The KV cache holds `kv_lora_rank + qk_rope_head_dim` elements per token. Few new tokens attend
    to the latents directly ("absorbed"); for many, keys and values are materialised first.
    """

    def __init__(self, cfg: ModelConfig, mla: MLAConfig) -> None:
        super().__init__()
        self.n_heads = cfg.n_heads
        self.nope_dim, self.rope_dim = mla.qk_nope_head_dim, mla.qk_rope_head_dim
        self.qk_dim, self.v_dim = self.nope_dim + self.rope_dim, mla.v_head_dim
        self.kv_lora_rank = mla.kv_lora_rank
        self.scale = softmax_scale(self.qk_dim, cfg.rope)

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
        q = "q_b_proj.weight" if self.compress_q else "q_proj.weight"
        self.row_parts = {  # blocks of rows that Muon orthogonalises separately
            q: (self.nope_dim, self.rope_dim) * cfg.n_heads,
            "kv_a_proj.weight": (self.kv_lora_rank, self.rope_dim),
            "kv_b_proj.weight": (self.nope_dim, self.v_dim) * cfg.n_heads,
        }

    def forward(self, x: Tensor, at: Positions, cache: LayerCache | None = None) -> Tensor:
        q = self.q_b_proj(self.q_a_norm(self.q_a_proj(x))) if self.compress_q else self.q_proj(x)
        q = q.unflatten(-1, (self.n_heads, self.qk_dim))  # (B, T, H, qk_dim)
        q_nope, q_rope = q.split((self.nope_dim, self.rope_dim), dim=-1)
        latent, k_rope = self.kv_a_proj(x).split((self.kv_lora_rank, self.rope_dim), dim=-1)
        latent = self.kv_a_norm(latent)
        rope = rotate(torch.cat((q_rope, k_rope.unsqueeze(-2)), dim=-2), at.cos, at.sin)
        q_rope, k_rope = rope[..., :-1, :], rope[..., -1, :]  # (B, T, H | 1, rope_dim)

        if cache is None:
            return self.o_proj(self.materialised(q_nope, q_rope, latent, k_rope, at.mask))
        (cached,) = cache.update(at, torch.cat((latent, k_rope), dim=-1).unsqueeze(1))
        if self.absorbs(x.shape[1]) if cache.absorb is None else cache.absorb:
            return self.o_proj(self.absorbed(q_nope, q_rope, cached, at.mask))
        latent, k_rope = cached.squeeze(1).split((self.kv_lora_rank, self.rope_dim), dim=-1)
        return self.o_proj(self.materialised(q_nope, q_rope, latent, k_rope, at.mask))

    def absorbs(self, n_queries: int) -> bool:
        """Whether absorbed attention takes fewer operations than materialised attention."""
        materialised = self.nope_dim + self.v_dim  # elements per head and token
        return n_queries * (2 * self.kv_lora_rank - materialised) < self.kv_lora_rank * materialised

    def materialised(
        self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Compute keys and values per head from latent (B, L, d_c) and k_rope (B, L, rope_dim)."""
        kv = self.kv_b_proj(latent).unflatten(-1, (self.n_heads, self.nope_dim + self.v_dim))
        k_nope, v = kv.split((self.nope_dim, self.v_dim), dim=-1)  # (B, L, H, nope_dim | v_dim)
        q_nope, q_rope, k_nope, v = (t.transpose(1, 2) for t in (q_nope, q_rope, k_nope, v))
        k_rope = k_rope.unsqueeze(1).expand(-1, self.n_heads, -1, -1)
        q, k = torch.cat((q_nope, q_rope), dim=-1), torch.cat((k_nope, k_rope), dim=-1)
        return attend(q, k, v, mask, scale=self.scale).flatten(-2)

    def absorbed(
        self, q_nope: Tensor, q_rope: Tensor, cached: Tensor, mask: Tensor | None
    ) -> Tensor:
        """The same on cached (B, 1, L, d_c + rope_dim) itself, one key and value for all heads.

        q_nope . (W_UK c) = (W_UK^T q_nope) . c, and sum_j p_j (W_UV c_j) = W_UV sum_j p_j c_j.
        """
        weight = self.kv_b_proj.weight.type_as(q_nope).unflatten(0, (self.n_heads, -1))
        w_uk, w_uv = weight.split((self.nope_dim, self.v_dim), dim=1)  # (H, nope_dim | v_dim, d_c)
        q = torch.cat((per_head(q_nope, w_uk), q_rope), dim=-1).transpose(1, 2)
        context = attend(q, cached, cached, mask, scale=self.scale)[..., : self.kv_lora_rank]
        return per_head(context, w_uv.transpose(1, 2)).flatten(-2)


class GroupedQueryAttention(nn.Module):
    """MHA, GQA and MQA. RoPE turns the leading `rope_head_dim` elements of a head."""

    def __init__(self, cfg: ModelConfig, gqa: GroupedAttentionConfig) -> None:
        super().__init__()
        self.head_dim, self.rope_dim = gqa.head_dim, gqa.rope_head_dim
        self.scale = softmax_scale(gqa.head_dim, cfg.rope)
        self.q_proj = nn.Linear(cfg.dim, cfg.n_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(cfg.dim, gqa.n_kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(cfg.dim, gqa.n_kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(cfg.n_heads * self.head_dim, cfg.dim, bias=False)
        head_parts = (self.rope_dim, self.head_dim - self.rope_dim)
        self.row_parts = {  # blocks of rows that Muon orthogonalises separately
            "q_proj.weight": head_parts * cfg.n_heads,
            "k_proj.weight": head_parts * gqa.n_kv_heads,
            "v_proj.weight": (self.head_dim,) * gqa.n_kv_heads,
        }

        def norm() -> nn.Module:
            return RMSNorm(self.head_dim, eps=cfg.norm_eps) if gqa.qk_norm else nn.Identity()

        self.q_norm, self.k_norm = norm(), norm()

    def forward(self, x: Tensor, at: Positions, cache: LayerCache | None = None) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim))  # (B, T, H | G, head_dim)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q = self._rotate_part(self.q_norm(q), at)
        k = self._rotate_part(self.k_norm(k), at)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if cache is not None:
            k, v = cache.update(at, k, v)
        return self.o_proj(attend(q, k, v, at.mask, scale=self.scale).flatten(-2))

    def _rotate_part(self, x: Tensor, at: Positions) -> Tensor:
        rope, nope = x.split((self.rope_dim, self.head_dim - self.rope_dim), dim=-1)
        return torch.cat((rotate(rope, at.cos, at.sin), nope), dim=-1)


def per_head(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply by one matrix per head: x (B, T, H, n), weight (H, n, m) -> (B, T, H, m)."""
    y = torch.bmm(x.flatten(0, 1).transpose(0, 1), weight)  # (H, B * T, m)
    return y.transpose(0, 1).unflatten(0, x.shape[:2])


def softmax_scale(width: int, rope: RopeConfig) -> float:
    """Softmax scale for heads of this width; YaRN multiplies it by mscale^2."""
    scale: float = width**-0.5
    if isinstance(rope, YarnConfig):
        scale *= rope.temperature(rope.mscale_all_dim) ** 2
    return scale


def build_attention(cfg: ModelConfig) -> nn.Module:
    """The attention layer that `cfg.attention.kind` names."""
    if isinstance(cfg.attention, MLAConfig):
        return MultiHeadLatentAttention(cfg, cfg.attention)
    return GroupedQueryAttention(cfg, cfg.attention)
