"""Between tensors that are sharded over ranks (DTensor) and whole ones."""

from typing import TypeVar

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")


def whole(tensor: T) -> T | Tensor:
    """A sharded tensor gathered on every rank; anything else as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(tensor: T, like: Tensor) -> T | Tensor:
    """This rank's part of a whole tensor, sharded as `like`; as it is where shapes differ."""
    if not isinstance(like, DTensor) or not isinstance(tensor, Tensor):
        return tensor
    if tensor.shape != like.shape:
        return tensor
    on_device = tensor.to(like.device)
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)
