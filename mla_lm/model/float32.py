"""Buffers that no change of number format may touch."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class KeepsFloat32(nn.Module):
    """A module whose own buffers stay as they are under `.to(bfloat16)`; they still move devices.

    A bias of selection sticks in bfloat16 as it grows, and rotary angles lose whole turns.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = dict(self.named_buffers(recurse=False))
        nn.Module._apply(self, fn, recurse)
        for name, buffer in before.items():
            after = getattr(self, name)
            if after.dtype != buffer.dtype:
                setattr(self, name, buffer.to(after.device))
        return self
