"""How suites measure and show: interleaved rounds, a process for each side, medians and spread."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from mla_lm.machine import keep_freed_memory
from mla_lm.memory import resident

Task = Callable[[], float]
_action: Task  # of this process
_before: int  # bytes


class Row(NamedTuple):
    """One figure: a median, its lowest and highest value, and peak memory in MiB where known."""

    name: str
    value: float
    unit: str
    spread: str = ""
    peak_mib: float = 0


def row(name: str, values: Sequence[float], unit: str, *, peak_mib: float = 0) -> Row:
    """The median of several values, and how far they spread."""
    spread = f"{min(values):.3g} .. {max(values):.3g}" if len(values) > 1 else ""
    return Row(name, statistics.median(values), unit, spread, peak_mib)


def ratio(name: str, one: Sequence[float], other: Sequence[float]) -> Row:
    """The median of one / other, taken round by round."""
    return row(name, [a / b for a, b in zip(one, other, strict=True)], "x")


def interleaved(tasks: Mapping[str, Task], *, rounds: int) -> dict[str, list[float]]:
    """What each task returns in every round; each round runs all, so that load hits all alike."""
    results = [{name: task() for name, task in tasks.items()} for _ in range(rounds)]
    return {name: [result[name] for result in results] for name in tasks}


def timed(action: Callable[[], object]) -> float:
    """Seconds that an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def fastest(ways: Mapping[str, Task]) -> str:
    """The name of the fastest way; each runs twice, and the second run counts."""
    return min(ways, key=lambda name: (ways[name](), ways[name]())[1])


def in_processes(
    builds: Mapping[str, Callable[[], Task]], *, rounds: int, warm_up: int = 1
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """What each `build()()` measures in its own process, round by round, and peaks in MiB.

    Builds are pickled. A peak is that of GPU memory, or the growth of the process since its start.
    """
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(ProcessPoolExecutor(1, spawn, _prepare, (build,)))
            for name, build in builds.items()
        }
        tasks = {name: partial(_act_in, process) for name, process in processes.items()}
        interleaved(tasks, rounds=warm_up)
        found = interleaved(tasks, rounds=rounds)
        peaks = {name: process.submit(_peak).result() for name, process in processes.items()}
        return found, {name: peak / 2**20 for name, peak in peaks.items()}


def _act_in(process: ProcessPoolExecutor) -> float:
    return process.submit(_act).result()


def _prepare(build: Callable[[], Task]) -> None:
    global _action, _before
    keep_freed_memory()
    _before = resident("VmRSS")
    _action = build()


def _act() -> float:
    return _action()


def _peak() -> float:
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resident("VmHWM") - _before


def show(title: str, rows: Sequence[Row]) -> None:
    """Print figures as a table."""
    table = Table("figure", "median", "unit", "spread", "peak MiB", title=title)
    for figure in rows:
        peak = f"{figure.peak_mib:,.0f}" if figure.peak_mib else ""
        table.add_row(figure.name, f"{figure.value:.4g}", figure.unit, figure.spread, peak)
    Console(width=140, markup=False, emoji=False).print(table)
