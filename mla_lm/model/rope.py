"""Rotary position embedding of adjacent pairs (arXiv 2104.09864), as DeepSeek's weights store it.

Pure functions; the pair (2i, 2i + 1) turns by position * theta^(-2i / width).
"""

import torch
from torch import Tensor


def rotary_tables(max_seq_len: int, width: int, *, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32, each (max_seq_len, width / 2)."""
    frequencies = theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.outer(torch.arange(max_seq_len, dtype=torch.float64), frequencies)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the last dimension of `x` (..., T, H, width) by tables (T, width / 2).

    Computed in float32 (bfloat16 positions lose whole turns), returned in the type of `x`.
    """
    cos, sin = cos[:, None], sin[:, None]  # (T, 1, width / 2): one angle for all heads
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return rotated.flatten(-2).type_as(x)
