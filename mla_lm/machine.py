"""This machine: device, number format, allocator, matmul peak, and what a run's bits depend on."""

import ctypes
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from mla_lm.config import Precision, RunConfig
from mla_lm.cost import bytes_of_ranks, count_parameters
from mla_lm.errors import UserError
from mla_lm.memory import cpu_memory

Resolved = Literal["32-true", "bf16-mixed", "16-mixed"]
DeviceType = Literal["cuda", "mps", "cpu"]
MATMULS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def accelerator_type(accelerator: str = "auto", *, key: str = "trainer.accelerator") -> DeviceType:
    """The device that `key=accelerator` means; UserError for a GPU that torch cannot find."""
    if accelerator in ("auto", "gpu") and torch.cuda.is_available():
        return "cuda"
    if accelerator in ("auto", "mps") and torch.backends.mps.is_available():
        return "mps"
    if accelerator in ("gpu", "mps"):
        kind = "CUDA" if accelerator == "gpu" else "Apple"
        raise UserError(f"{key}={accelerator}: torch finds no {kind} GPU; use auto or cpu")
    return "cpu"


def resolve_precision(precision: Precision, device_type: str) -> Resolved:
    """Turn `auto` into the fastest format here; UserError for one that does not work here."""
    choices = _precisions(device_type)
    if precision == "auto":
        return choices[0]
    if precision not in choices:
        allowed = " or ".join(choices)
        raise UserError(f"precision={precision}: must be {allowed} on this device ({device_type})")
    return precision


def _precisions(device_type: str) -> tuple[Resolved, ...]:
    """Those that work on a device, the fastest first.

    Without AMX or AVX512-BF16 a CPU emulates bfloat16, slower than float32. float16 needs loss
    scaling, which Lightning has for CUDA; Apple GPUs stay at float32.
    """
    if device_type == "mps":
        return ("32-true",)
    if device_type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16-mixed", "16-mixed", "32-true") if fast else ("16-mixed", "32-true")
    supported: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    fast = supported.get("amx_bf16", False) or supported.get("avx512_bf16", False)
    return ("bf16-mixed", "32-true") if fast else ("32-true", "bf16-mixed")


def autocast(precision: Resolved, device_type: str) -> torch.autocast:
    """The context to run a model in at a resolved `precision`, outside Lightning."""
    enabled = precision != "32-true"
    return torch.autocast(device_type, dtype=MATMULS[precision], enabled=enabled)


@contextmanager
def kernels_for(n_rows: int, dtype: torch.dtype) -> Iterator[None]:
    """Kernels for shapes that change at every call, as in decoding and scoring.

    cuDNN plans its attention anew for each length. oneDNN is slower than torch's own CPU kernels
    for one or two bfloat16 rows: one row by a 512 x 384 matrix takes 28 us instead of 12, two
    rows 21, three 30.
    """
    onednn: Any = torch.backends.mkldnn
    before, cudnn = onednn.enabled, torch.backends.cuda.cudnn_sdp_enabled()
    onednn.enabled = before and not (n_rows <= 2 and dtype == torch.bfloat16)
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        onednn.enabled = before
        torch.backends.cuda.enable_cudnn_sdp(cudnn)


def keep_freed_memory() -> None:
    """Let glibc keep freed buffers instead of returning them to the system at every free.

    A training step frees and allocates the same large buffers; fetching them afresh means a page
    fault for every 4 KiB, a fifth of a small model's step on a CPU.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def require_memory(cfg: RunConfig, device: DeviceType, *, n_ranks: int, n_local: int) -> None:
    """UserError where weights, gradients and optimizer state are larger than the memory for them.

    On a CPU the `n_local` ranks of this machine share it; a GPU is one rank's own.
    """
    if device == "cuda":
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        there, place, n = properties.total_memory, "each GPU", 1
    else:
        ranks = f" of {n_local} ranks" if n_local > 1 else ""
        there, place, n = cpu_memory(), f"this machine{ranks}", n_local
    needed = bytes_of_ranks(cfg, n, n_ranks=n_ranks)
    if needed > there:
        parameters = count_parameters(cfg.model)
        raise UserError(
            f"model: {(parameters.total + parameters.mtp) / 1e6:,.1f}M parameters need "
            f"{needed / 1e9:,.1f} GB for weights, gradients and optimizer state, activations "
            f"besides, and {place} has {there / 1e9:,.1f} GB of memory; try: (1) a smaller model, "
            "see `python -m mla_lm info`; (2) trainer.strategy=fsdp, which shares them out among "
            "GPUs or machines"
        )


def out_of_memory(error: Exception) -> bool:
    """Whether an error came from the GPU's or the CPU's allocator."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or "DefaultCPUAllocator" in str(error) or "MPS backend out of" in str(error)


def product_ceiling(precision: Resolved, device: torch.device, seconds: float = 0.2) -> float:
    """FLOP/s of large square matmuls here: the peak that a training step is compared with."""
    side = {"cuda": 8192, "mps": 4096}.get(device.type, 1024)
    numbers = torch.Generator(device).manual_seed(0)  # equal ones heat a GPU less and run faster
    a = torch.randn(side, side, generator=numbers, device=device).to(MATMULS[precision])
    fastest = float("inf")
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        before = time.perf_counter()
        float((a @ a)[0, 0])  # waits for the device
        fastest = min(fastest, time.perf_counter() - before)
    return 2 * side**3 / fastest


class MatmulPeak:
    """The FLOP/s of large square matmuls here, and what share of them a training step reaches."""

    def __init__(self, precision: Resolved, device: torch.device) -> None:
        self.of = precision, device
        self.flops = product_ceiling(*self.of)

    def share(self, flops: float) -> float | None:
        """None above 1, where measuring the peak again does not help: the machine is busy."""
        if flops > self.flops:
            self.flops = max(self.flops, product_ceiling(*self.of))
        return flops / self.flops if flops <= self.flops else None


class Hardware(NamedTuple):
    """What a run uses of this machine, and what its exact bits depend on besides its config."""

    device: DeviceType
    precision: Resolved
    environment: dict[str, str | int]  # with the commit of the code


def hardware(precision: Precision = "auto", accelerator: str = "auto") -> Hardware:
    """Device and number format here; UserError for those that this machine does not have."""
    device = accelerator_type(accelerator)
    resolved = resolve_precision(precision, device)
    chip = "Apple GPU" if device == "mps" else torch.backends.cpu.get_cpu_capability()
    chip = f"{platform.machine()} {chip}"
    environment: dict[str, str | int] = {
        "threads": torch.get_num_threads(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "precision": resolved,
        "device": torch.cuda.get_device_name() if device == "cuda" else chip,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": version("lightning"),
        "commit": _commit(Path(__file__).resolve().parent.parent),
    }
    return Hardware(device, resolved, environment)


def _commit(root: Path) -> str:
    """The commit of a clone, `-dirty` if files differ from it; `unknown` outside a clone."""
    if not (root / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()
