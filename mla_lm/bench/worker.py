"""A process for each side of a comparison, so that each has its own heap and its own peak."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from mla_lm.machine import keep_freed_memory, resident

_action: Callable[[], Any]  # of this process
_before: int


class Worker(ProcessPoolExecutor):
    """Calls `build()` in another process, and there its result at every call; both are pickled."""

    def __init__(self, build: Callable[[], Callable[[], Any]]) -> None:
        spawn = multiprocessing.get_context("spawn")
        super().__init__(1, mp_context=spawn, initializer=_prepare, initargs=(build,))

    def __call__(self) -> Any:
        return self.submit(_act).result()

    def peak(self) -> int:
        """Peak bytes of GPU memory, or by how much the process grew since before the build."""
        return self.submit(_peak).result()


def _prepare(build: Callable[[], Callable[[], Any]]) -> None:
    global _action, _before
    keep_freed_memory()
    _before = resident("VmRSS")
    _action = build()


def _act() -> Any:
    return _action()


def _peak() -> int:
    import torch

    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resident("VmHWM") - _before
