"""A GPU without one: tensors that say `cuda` and have a shape and a type, but no numbers.

On top of torch's fake tensors: what a step launches, the bytes it moves, where the host waits, and
which attention kernel torch would take. Patches torch for good: for a process of its own, which
`child.py` is.
"""

import ctypes
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
ATEN = torch.ops.aten
SDPA = torch.nn.functional.scaled_dot_product_attention
HALF = (torch.float16, torch.bfloat16)
GUARDS, CUDA_GUARD, META_GUARD = 21, 1, 14  # c10/core/DeviceType.h
SIZED_BY_VALUES = (  # the host waits to learn the size of the result
    "aten::nonzero",
    "aten::masked_select",
    "aten::bincount",
    "aten::_unique2",
)
FREE = ("aten::empty", "aten::detach", "aten::_local_scalar_dense", "aten::lift", "prim::")


class Gpu(NamedTuple):
    """Of which generation, and whether it has bfloat16."""

    capability: tuple[int, int]
    bfloat16: bool


GPUS = {"H200": Gpu((9, 0), True), "RTX 4090": Gpu((8, 9), True), "T4": Gpu((7, 5), False)}


class WithoutDevice(FakeTensorMode):
    """torch finds a GPU and must not touch it."""

    avoid_device_init = True


def be(gpu: Gpu) -> None:
    """torch's answers on that machine; a build for CPUs has no guard of the current GPU."""
    torch.cuda.is_available = lambda: True
    torch.cuda.is_bf16_supported = lambda **_: gpu.bfloat16
    torch.cuda.get_device_capability = lambda *_: gpu.capability
    honest = getattr(torch.Generator, "honest", torch.Generator)
    torch.Generator = type("Generator", (), {"honest": honest, "__new__": lambda *_: honest()})
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    name = "_ZN3c104impl26device_guard_impl_registryE"
    guards = (ctypes.c_void_p * GUARDS).in_dll(library, name)
    guards[CUDA_GUARD] = guards[CUDA_GUARD] or guards[META_GUARD]


class Watch(TorchDispatchMode):
    """Counts what a GPU would do, and answers the host with ones.

    C++ is told `meta`, for which the autograd engine needs no streams. So autocast passes over all
    that torch casts by itself: types are not what they are on a GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        self.launches = self.bytes = self.largest = 0
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.prim.device.default:
            device = args[0].fake_device
            return torch.device("meta") if device.type == "cuda" else device
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "meta":
            kwargs["device"] = CUDA
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, FakeTensor)]
        there = [t for t in given if t.fake_device.type == "cuda"]
        if "fused" in func.name() and len(there) not in (0, len(given)):
            raise AssertionError(f"{func.name()}: tensors on the CPU among those on the GPU")
        if func is ATEN._local_scalar_dense.default:
            self.wait(args[0], "item")
            return answer(args[0])
        if func.name() in SIZED_BY_VALUES or (func is ATEN.index.Tensor and by_mask(args[1])):
            self.wait(args[0], func.name())
            return sized_one(func.name(), args[0])
        result = func(*args, **kwargs)
        self.note(func, there, result)
        return result

    def wait(self, of: Tensor, name: str) -> None:
        self.waits[name] += of.device.type == "cuda"

    def note(self, func: Any, there: list[FakeTensor], result: Any) -> None:
        made = [t for t in tree_leaves(result) if isinstance(t, FakeTensor)]
        if there and any(t.fake_device.type == "cpu" for t in made):
            self.waits["copy to the host"] += 1
        on_gpu = [t for t in made if t.fake_device.type == "cuda"]
        self.largest = max([self.largest, *(t.nbytes for t in on_gpu)])
        if func.is_view or func.name().startswith(FREE) or not (there or on_gpu):
            return
        self.launches += 1
        self.bytes += sum(t.nbytes for t in (*there, *on_gpu))


def sized_one(name: str, of: Tensor) -> Any:
    """The result where a single element was found."""
    if name == "aten::nonzero":
        return of.new_empty((1, of.ndim), dtype=torch.int64)
    if name == "aten::_unique2":
        return of.new_empty(1), torch.empty_like(of), of.new_empty(1)
    return of.new_empty(1)


def by_mask(indices: Any) -> bool:
    return any(index is not None and index.dtype == torch.bool for index in indices)


class Attention:
    """`scaled_dot_product_attention` by the kernel that torch would take on a GPU; counts them."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.kernels: Counter[str] = Counter()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> Tensor:
        if torch.is_autocast_enabled("cuda"):
            q, k, v = (t.to(torch.get_autocast_dtype("cuda")) for t in (q, k, v))
        mask, causal, scale = (kwargs[name] for name in ("attn_mask", "is_causal", "scale"))
        name = kernel(self.gpu, q, k, v, mask)
        self.kernels[name] += 1
        if name in ("flash", "cudnn"):
            flash = ATEN._scaled_dot_product_flash_attention
            return flash(q, k, v, 0.0, causal, scale=scale)[0]
        if name == "efficient":
            if mask is not None:
                mask = torch.zeros((), dtype=q.dtype, device=CUDA).expand(*q.shape[:3], k.shape[2])
            efficient = ATEN._scaled_dot_product_efficient_attention
            return efficient(q, k, v, mask, q.requires_grad, 0.0, causal, scale=scale)[0]
        return SDPA(q, k, v, **kwargs)


def kernel(gpu: Gpu, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> str:
    """The first in torch's order that takes these (`sdp_utils.cpp`, simplified)."""
    half, equal_heads = q.dtype in HALF, q.shape[1] == k.shape[1]
    width = q.shape[-1]
    cudnn = gpu.capability[0] >= 9 and torch.backends.cuda.cudnn_sdp_enabled()
    if cudnn and half and width <= 128 and width % 8 == 0:
        return "cudnn"
    if gpu.capability[0] >= 8 and half and mask is None and width == v.shape[-1] <= 256:
        return "flash"
    return "efficient" if equal_heads else "math"


def answer(tensor: Any) -> Any:
    """Ones in the shape of a tensor, as a list: no host can know better."""
    one = 1.0 if tensor.dtype.is_floating_point else 1
    for n in reversed(tensor.shape):
        one = [one] * n
    return one


def move(module: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """`Module._apply` without swapping tensors, which torch refuses for fake ones."""
    for child in module.children():
        child._apply(fn)
    for p in module.parameters(recurse=False):
        moved = fn(p.detach())
        if moved.device != p.device or moved.dtype != p.dtype:
            raise AssertionError("build the model where it is to be: tied weights would part")
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else fn(buffer)
    return module


@contextmanager
def gpu_of(gpu: Gpu) -> Iterator[tuple[Watch, Attention]]:
    """Tensors are fake inside; those made without a device are on the CPU."""
    be(gpu)
    watch, attention = Watch(), Attention(gpu)

    def tolist(tensor: Any) -> Any:
        watch.wait(tensor, "tolist")
        return answer(tensor)

    FakeTensor.tolist = tolist
    nn.Module._apply = move
    torch.nn.functional.scaled_dot_product_attention = attention
    with WithoutDevice(), watch:
        yield watch, attention
