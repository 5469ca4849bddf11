"""Rotary position embedding of adjacent pairs (arXiv 2104.09864), as DeepSeek's weights store it.

Pure functions; the pair (2i, 2i + 1) turns by position * theta^(-2i / width). YaRN (arXiv
2309.00071) interpolates the slow frequencies, so that a model reads beyond its trained context.
"""

import math

import torch
from torch import Tensor

from mla_lm.config import RopeConfig, YarnConfig


def rotary_tables(max_seq_len: int, width: int, rope: RopeConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32, each (max_seq_len, width / 2)."""
    frequencies = rope.theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    amplitude = 1.0
    if isinstance(rope, YarnConfig):
        interpolated = _interpolated(width, rope)
        frequencies = frequencies * (1 - interpolated + interpolated / rope.factor)
        amplitude = rope.amplitude
    angles = torch.outer(torch.arange(max_seq_len, dtype=torch.float64), frequencies)
    return (amplitude * angles.cos()).float(), (amplitude * angles.sin()).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the last dimension of `x` (..., T, H, width) by tables (..., T, width / 2).

    Computed in float32 (bfloat16 positions lose whole turns), returned in the dtype of `x`.
    """
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)  # one angle for all heads
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return rotated.flatten(-2).type_as(x)


def _interpolated(width: int, yarn: YarnConfig) -> Tensor:
    """Ramp from 0 (own frequency) to 1 (divided by the factor) over pairs: (width / 2,) float64."""

    def correction_dim(rotations: float) -> float:
        """Fractional index of the pair with that many rotations in the trained context."""
        wavelength = yarn.original_max_seq_len / (2 * math.pi * rotations)
        return width * math.log(wavelength) / (2 * math.log(yarn.theta))

    low = max(math.floor(correction_dim(yarn.beta_fast)), 0)
    high = min(math.ceil(correction_dim(yarn.beta_slow)), width - 1)
    pairs = torch.arange(width // 2, dtype=torch.float64)
    return ((pairs - low) / (high - low or 1e-3)).clamp(0, 1)
