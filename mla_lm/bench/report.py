"""How a measurement is taken and shown: interleaved rounds, medians with their spread."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table


class Row(NamedTuple):
    """One figure; `goal` in words, empty where there is none, `peak` in MiB where it is known."""

    name: str
    value: float
    unit: str
    spread: str = ""
    goal: str = ""
    peak: float = 0


def interleaved(tasks: Sequence[Callable[[], float]], *, rounds: int) -> list[list[float]]:
    """What each task returns in every round; round by round, so that all share the same weather."""
    results = [[task() for task in tasks] for _ in range(rounds)]
    return [list(column) for column in zip(*results, strict=True)]


def timed(action: Callable[[], object]) -> float:
    """Seconds an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def fastest(ways: Mapping[str, Callable[[], float]]) -> str:
    """The name of the way that takes least; each is run twice."""
    return min(ways, key=lambda name: (ways[name](), ways[name]())[1])


def median_row(
    name: str, values: Sequence[float], unit: str, *, goal: str = "", peak: float = 0
) -> Row:
    """The median of several values, and how far they lie apart."""
    spread = f"{min(values):.3g} .. {max(values):.3g}"
    return Row(name, statistics.median(values), unit, spread, goal, peak)


def ratio_row(
    name: str, one: Sequence[float], other: Sequence[float], *, goal: float | None = None
) -> Row:
    """The median ratio of two sides, round by round."""
    values = [a / b for a, b in zip(one, other, strict=True)]
    return median_row(name, values, "x", goal="" if goal is None else f">= {goal:g}")


def show(title: str, rows: Sequence[Row]) -> None:
    """Print figures as a table."""
    table = Table("figure", "value", "unit", "spread", "goal", "peak MiB", title=title)
    for column in table.columns:
        column.no_wrap = True
    for row in rows:
        peak = f"{row.peak:,.0f}" if row.peak else ""
        table.add_row(row.name, f"{row.value:.4g}", row.unit, row.spread, row.goal, peak)
    console = Console()
    console.width = max(console.width, 140)
    console.print(table)
