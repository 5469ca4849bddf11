"""Rotary position embedding of adjacent pairs (arXiv 2104.09864), as DeepSeek's weights store it.

Pure functions; the pair (2i, 2i + 1) turns by position * theta^(-2i / width). YaRN (arXiv
2309.00071) slows the pairs that a trained context never saw turn, so that longer ones can be read.
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
        slowed = _slowed(width, rope)
        frequencies = frequencies * (1 - slowed + slowed / rope.factor)
        amplitude = rope.amplitude
    angles = torch.outer(torch.arange(max_seq_len, dtype=torch.float64), frequencies)
    return (amplitude * angles.cos()).float(), (amplitude * angles.sin()).float()


def softmax_scale(width: int, rope: RopeConfig) -> float:
    """What scores of heads of this width are multiplied by; YaRN sharpens them."""
    scale: float = width**-0.5
    if isinstance(rope, YarnConfig):
        scale *= rope.temperature(rope.mscale_all_dim) ** 2
    return scale


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the last dimension of `x` (..., T, H, width) by tables (..., T, width / 2).

    Computed in float32 (bfloat16 positions lose whole turns), returned in the type of `x`.
    """
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)  # one angle for all heads
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return rotated.flatten(-2).type_as(x)


def _slowed(width: int, yarn: YarnConfig) -> Tensor:
    """How much of each pair's frequency is divided by the factor, 0 to 1: (width / 2,) float64."""

    def pair_that_turns(times: float) -> float:
        """The pair, as a fraction, that turns so many times within the trained context."""
        wavelength = yarn.original_max_seq_len / (2 * math.pi * times)
        return width * math.log(wavelength) / (2 * math.log(yarn.theta))

    low = max(math.floor(pair_that_turns(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(yarn.beta_slow)), width - 1)
    pairs = torch.arange(width // 2, dtype=torch.float64)
    return ((pairs - low) / (high - low or 1e-3)).clamp(0, 1)
