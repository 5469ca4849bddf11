"""Which number format pays on this machine."""

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
