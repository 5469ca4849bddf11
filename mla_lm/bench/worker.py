"""A process of its own for each side, as users have it: no other's memory, and its own peak."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Self

from mla_lm.machine import keep_freed_memory, resident

_action: Callable[[], Any]  # of the process
_before: int


class Worker:
    """Makes an action by `build` in another process and runs it there; both must be picklable."""

    def __init__(self, build: Callable[[], Callable[[], Any]]) -> None:
        self.pool = ProcessPoolExecutor(
            1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_prepare,
            initargs=(build,),
        )

    def __call__(self) -> Any:
        return self.pool.submit(_act).result()

    def peak(self) -> int:
        """Bytes that the process has grown by at most since before the build; 0 where unknown.

        Of a GPU's memory where it uses one.
        """
        return self.pool.submit(_peak).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()


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
