"""Every attention kind against loops written from the equations, in float64."""

import cmath
import math

import pytest
import torch
from torch import Tensor

from mla_lm.config import GroupedAttentionConfig, MLAConfig, ModelConfig
from mla_lm.model.attention import build_attention
from mla_lm.model.positions import Positions
from mla_lm.model.rope import rotary_tables
from tests.conftest import tiny_config

BATCH, LENGTH = 2, 7
MLA_SHAPES = [
    (),
    ("model.attention.q_lora_rank=22",),
    ("model.attention.v_head_dim=5",),
    ("model.attention.v_head_dim=16",),
    ("model.attention.v_head_dim=23", "model.attention.q_lora_rank=22"),
    ("model.attention.qk_rope_head_dim=12", "model.attention.qk_nope_head_dim=3"),
]
GROUPED_SHAPES = [
    ("model/attention=mha",),
    ("model/attention=gqa",),
    ("model/attention=mqa",),
    ("model/attention=gqa", "model.attention.rope_head_dim=4"),
    ("model/attention=gqa", "model.attention.qk_norm=true", "model.norm_eps=0.01"),
    ("model/attention=mha", "model.attention.qk_norm=true", "model.attention.rope_head_dim=8"),
]


def slow_rotate(x: Tensor, position: int, theta: float) -> Tensor:
    """Adjacent pairs as complex numbers, each turned by position * theta^(-2i / width)."""
    pairs = []
    for i in range(len(x) // 2):
        angle = position * theta ** (-2 * i / len(x))
        turned = complex(x[2 * i], x[2 * i + 1]) * cmath.exp(1j * angle)
        pairs += [turned.real, turned.imag]
    return torch.tensor(pairs, dtype=torch.float64)


def slow_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean() + eps) * weight


def slow_head(q: list[Tensor], k: list[Tensor], v: list[Tensor]) -> list[Tensor]:
    """One head of causal attention, position by position."""
    context = []
    for t in range(len(q)):
        scores = [float(q[t] @ k[s]) / math.sqrt(len(q[t])) for s in range(t + 1)]
        weights = [math.exp(score - max(scores)) for score in scores]
        context.append(sum((w * v[s] for s, w in enumerate(weights)), 0 * v[0]) / sum(weights))
    return context


def slow_mla(weight: dict[str, Tensor], x: Tensor, cfg: ModelConfig, mla: MLAConfig) -> Tensor:
    """One sequence (T, dim), with the symbols of DeepSeek-V2."""
    d_n, d_r, d_v = mla.qk_nope_head_dim, mla.qk_rope_head_dim, mla.v_head_dim
    d_c = mla.kv_lora_rank
    heads = []
    for h in range(cfg.n_heads):
        q, k, v = [], [], []
        for t, h_t in enumerate(x):
            if mla.q_lora_rank is None:
                q_all = weight["q_proj"] @ h_t
            else:
                c_q = slow_norm(weight["q_a_proj"] @ h_t, weight["q_a_norm"], 1e-6)
                q_all = weight["q_b_proj"] @ c_q
            q_h = q_all[h * (d_n + d_r) : (h + 1) * (d_n + d_r)]
            compressed = weight["kv_a_proj"] @ h_t
            c_kv = slow_norm(compressed[:d_c], weight["kv_a_norm"], 1e-6)
            kv_h = (weight["kv_b_proj"] @ c_kv)[h * (d_n + d_v) : (h + 1) * (d_n + d_v)]
            q.append(torch.cat((q_h[:d_n], slow_rotate(q_h[d_n:], t, cfg.rope.theta))))
            k.append(torch.cat((kv_h[:d_n], slow_rotate(compressed[d_c:], t, cfg.rope.theta))))
            v.append(kv_h[d_n:])
        heads.append(torch.stack(slow_head(q, k, v)))
    return torch.cat(heads, dim=-1) @ weight["o_proj"].T


def slow_grouped(
    weight: dict[str, Tensor], x: Tensor, cfg: ModelConfig, gqa: GroupedAttentionConfig
) -> Tensor:
    """One sequence (T, dim); query heads h G / H share a key/value head."""
    width, rope = gqa.head_dim, gqa.rope_head_dim

    def head(name: str, index: int, position: int) -> Tensor:
        y = (weight[f"{name}_proj"] @ x[position])[index * width : (index + 1) * width]
        if name == "v":
            return y
        if gqa.qk_norm:
            y = slow_norm(y, weight[f"{name}_norm"], cfg.norm_eps)
        return torch.cat((slow_rotate(y[:rope], position, cfg.rope.theta), y[rope:]))

    heads = []
    for h in range(cfg.n_heads):
        group = h * gqa.n_kv_heads // cfg.n_heads
        index = {"q": h, "k": group, "v": group}
        q, k, v = ([head(name, index[name], t) for t in range(len(x))] for name in "qkv")
        heads.append(torch.stack(slow_head(q, k, v)))
    return torch.cat(heads, dim=-1) @ weight["o_proj"].T


@torch.no_grad()
@pytest.mark.parametrize("overrides", [*MLA_SHAPES, *GROUPED_SHAPES], ids=" ".join)
def test_equals_loops_from_the_equations(overrides: tuple[str, ...]) -> None:
    cfg = tiny_config(*overrides, "model.rope.theta=100.0").model
    layer = build_attention(cfg)
    for p in layer.parameters():
        p.normal_(std=0.3) if p.ndim > 1 else p.uniform_(0.5, 1.5)
    weight = {name.removesuffix(".weight"): p.double() for name, p in layer.named_parameters()}
    x = torch.randn(BATCH, LENGTH, cfg.dim)
    if isinstance(cfg.attention, MLAConfig):
        expected = [slow_mla(weight, row.double(), cfg, cfg.attention) for row in x]
    else:
        expected = [slow_grouped(weight, row.double(), cfg, cfg.attention) for row in x]
    y = layer(x, Positions(*rotary_tables(LENGTH, cfg.attention.rope_dim, cfg.rope)))
    torch.testing.assert_close(y, torch.stack(expected).float(), rtol=1e-4, atol=1e-5)
