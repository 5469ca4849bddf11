"""Whether a tree from a file is one that a run of its configuration saves.

It is compared with the tree that a fresh run has: the same keys, kinds, shapes and lengths. Numbers
may be others, in the range of a count, a finite float, a finite tensor. Knows nothing of runs.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

PROGRESS = ("ready", "started", "processed", "completed")  # Lightning counts each event so
NOT_NEGATIVE = ("step", "exp_avg_sq")  # tensors of AdamW
LARGEST = 2**53  # of a count


def require_alike(found: Any, fresh: Any, key: str) -> None:
    """Raise ValueError that names the first place where `found` is not like `fresh`."""
    if isinstance(fresh, Tensor):
        _require_tensor(found, fresh, key)
    elif isinstance(fresh, Mapping):
        if not isinstance(found, Mapping) or found.keys() != fresh.keys():
            other = found.keys() ^ fresh.keys() if isinstance(found, Mapping) else found
            raise ValueError(f"{key}: has other keys: {str(other)[:80]}")
        for name in fresh:
            require_alike(found[name], fresh[name], f"{key}.{name}".lstrip("."))
        counts = [found[name] for name in PROGRESS if name in found]
        if counts != sorted(counts, reverse=True) or (counts and counts[0] - counts[-1] > 1):
            raise ValueError(f"{key}: {counts} do not follow from each other")
    elif isinstance(fresh, list | tuple):
        if type(found) is not type(fresh) or len(found) != len(fresh):
            raise ValueError(f"{key}: is not a {type(fresh).__name__} of {len(fresh)}")
        for i, pair in enumerate(zip(found, fresh, strict=True)):
            require_alike(*pair, f"{key}.{i}")
    elif not _is_plain(found, fresh):
        raise ValueError(f"{key}={str(found)[:80]}: is not what a run saves")


def _require_tensor(found: Any, fresh: Tensor, key: str) -> None:
    is_kind = isinstance(found, Tensor) and found.is_floating_point() == fresh.is_floating_point()
    if not is_kind or found.shape != fresh.shape:  # of any width: import keeps 16 bits
        there = f"{found.dtype} {[*found.shape]}" if isinstance(found, Tensor) else type(found)
        raise ValueError(f"{key}: is {there}, not {fresh.dtype} {[*fresh.shape]}")
    if not torch.isfinite(found).all():
        raise ValueError(f"{key}: holds values that are not finite")
    if key.endswith(NOT_NEGATIVE) and (found < 0).any():
        raise ValueError(f"{key}: holds negative values")


def _is_plain(found: Any, fresh: Any) -> bool:
    """A value of the same type; None of a fresh run may have become a number."""
    if fresh is None:
        return found is None or _is_plain(found, 0) or _is_plain(found, 0.0)
    if type(found) is not type(fresh):
        return False
    if isinstance(fresh, bool | str):
        return True
    return 0 <= found < LARGEST if isinstance(fresh, int) else abs(found) < float("inf")
