"""Layers of every block: RMSNorm, SwiGLU, and a base class whose buffers stay float32."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """RMSNorm (arXiv 1910.07467), (..., dim) -> (..., dim) in the dtype of the input.

    Fused kernels need weight and input of one dtype, and accumulate in float32 whatever it is.
    CUDA's autocast, unlike that of CPUs, returns float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.type_as(x), self.eps).type_as(x)


class SwiGLU(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x)), (..., dim) -> (..., dim)."""

    def __init__(self, dim: int, inter_dim: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, inter_dim, bias=False)
        self.up_proj = nn.Linear(dim, inter_dim, bias=False)
        self.down_proj = nn.Linear(inter_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class KeepsFloat32(nn.Module):
    """A module whose own buffers keep their dtype under `.to(bfloat16)`; they still change device.

    In bfloat16 a routing bias rounds small updates away, and rotary angles lose whole turns.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = dict(self.named_buffers(recurse=False))
        nn.Module._apply(self, fn, recurse)
        for name, buffer in before.items():
            after = getattr(self, name)
            if after.dtype != buffer.dtype:
                setattr(self, name, buffer.to(after.device))
        return self
