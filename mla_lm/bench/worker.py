"""A process for each side of a comparison, so that each has its own heap and its own peak."""

import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial

from mla_lm.bench.report import Task, interleaved
from mla_lm.machine import keep_freed_memory, resident

_action: Task  # of this process
_before: int  # bytes


def in_processes(
    builds: Mapping[str, Callable[[], Task]], *, rounds: int, warm_up: int = 1
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """What each `build()()` measures in its own process, round by round, and peaks in MiB.

    Builds are pickled. A peak is that of GPU memory, or the growth of the process since its start.
    """
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        tasks, peaks = {}, {}
        for name, build in builds.items():
            process = stack.enter_context(ProcessPoolExecutor(1, spawn, _prepare, (build,)))
            tasks[name], peaks[name] = (partial(_result, process, do) for do in (_act, _peak))
            for _ in range(warm_up):
                tasks[name]()
        found = interleaved(tasks, rounds=rounds)
        return found, {name: peak() / 2**20 for name, peak in peaks.items()}


def _result(process: ProcessPoolExecutor, do: Callable[[], float]) -> float:
    return process.submit(do).result()


def _prepare(build: Callable[[], Task]) -> None:
    global _action, _before
    keep_freed_memory()
    _before = resident("VmRSS")
    _action = build()


def _act() -> float:
    return _action()


def _peak() -> float:
    import torch

    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resident("VmHWM") - _before
