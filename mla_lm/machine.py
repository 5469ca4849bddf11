"""What pays on this machine: its number format, and how its memory allocator is set."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from mla_lm.config import Precision
from mla_lm.errors import UserError

Resolved = Literal["32-true", "bf16-mixed"]


def accelerator_type(accelerator: str = "auto") -> Literal["cuda", "cpu"]:
    """What `trainer.accelerator` asks for; UserError when a GPU is wanted and there is none."""
    available = torch.cuda.is_available()
    if accelerator == "gpu" and not available:
        raise UserError("trainer.accelerator=gpu: torch finds no CUDA GPU; use auto or cpu")
    return "cuda" if accelerator != "cpu" and available else "cpu"


def resolve_precision(precision: Precision, device_type: str) -> Resolved:
    """Turn `auto` into bf16-mixed where matmul units support bfloat16, else 32-true.

    On a CPU without AMX or AVX512-BF16 bfloat16 is emulated, and slower than float32.
    """
    if precision != "auto":
        return precision
    if device_type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        supported: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        fast = supported.get("amx_bf16", False) or supported.get("avx512_bf16", False)
    return "bf16-mixed" if fast else "32-true"


def autocast(precision: Resolved, device_type: str) -> torch.autocast:
    """The context in which a model runs at a resolved `precision` outside Lightning."""
    return torch.autocast(device_type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed")


@contextmanager
def kernels_for(n_rows: int, dtype: torch.dtype) -> Iterator[None]:
    """Products of so few rows by torch's own kernels, where they are faster than oneDNN's.

    On a CPU, one row of bfloat16 by a matrix of 512 x 384: 12 us against 28, two rows 21, three 30.
    """
    onednn: Any = torch.backends.mkldnn
    before = onednn.enabled
    onednn.enabled = before and not (n_rows <= 2 and dtype == torch.bfloat16)
    try:
        yield
    finally:
        onednn.enabled = before


def keep_freed_memory() -> None:
    """Let glibc keep freed buffers instead of returning them to the system at every free.

    A training step frees and allocates the same large buffers; fetching them afresh means a page
    fault for every 4 KiB, a fifth of a small model's step on a CPU.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
