"""Tensors that are cut into one part for each rank (DTensor), and whole ones."""

from typing import TypeVar

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")


def whole(tensor: T) -> T | Tensor:
    """All of a sharded tensor, put together on every rank; anything else as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(tensor: T, like: Tensor) -> T | Tensor:
    """Of a whole tensor this rank's part, cut as `like` is; as it is where that does not fit."""
    if not isinstance(like, DTensor) or not isinstance(tensor, Tensor):
        return tensor
    if tensor.shape != like.shape:
        return tensor
    on_device = tensor.to(like.device)
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)
