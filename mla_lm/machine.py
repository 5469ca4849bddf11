"""What pays on this machine: its number format, and how its memory allocator is set."""

import ctypes
import sys

import torch


def accelerator_type(accelerator: str = "auto") -> str:
    """`cuda` or `cpu`, as `trainer.accelerator` asks."""
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def resolve_precision(precision: str, device_type: str) -> str:
    """Turn `auto` into bf16-mixed where matmul units support bfloat16, else 32-true.

    On a CPU without AMX or AVX512-BF16 bfloat16 is emulated, and slower than float32.
    """
    if precision != "auto":
        return precision
    if device_type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    supported = getattr(torch.cpu, "get_capabilities", dict)()  # not in torch 2.10
    fast = supported.get("amx_bf16") or supported.get("avx512_bf16")
    return "bf16-mixed" if fast else "32-true"


def autocast(precision: str, device_type: str) -> torch.autocast:
    """The context in which a model runs at a resolved `precision` outside Lightning."""
    return torch.autocast(device_type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed")


def keep_freed_memory() -> None:
    """Let glibc keep freed buffers instead of returning them to the system at every free.

    A training step frees and allocates the same large buffers; fetching them afresh means a page
    fault for every 4 KiB, a fifth of a small model's step on a CPU.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
