"""Conversion between sharded tensors (DTensor, one shard per rank) and full ones."""

from typing import TypeVar

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")


def whole(tensor: T) -> T | Tensor:
    """Gather a sharded tensor on every rank; anything else is returned unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(tensor: T, like: Tensor) -> T | Tensor:
    """This rank's shard of a full tensor, sharded as `like`; unchanged where `like` is not."""
    if not isinstance(like, DTensor) or not isinstance(tensor, Tensor):
        return tensor
    if tensor.shape != like.shape:
        return tensor
    on_device = tensor.to(like.device)
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)
