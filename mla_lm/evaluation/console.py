"""What an evaluation shows on the console: progress on a terminal, tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from rich import progress
from rich.console import Console
from rich.table import Table

T = TypeVar("T")
LOAD, ERROR = "moe/load", "_stderr"


def track(items: Iterable[T], name: str, *, total: int | None = None) -> Iterable[T]:
    """The items, with a bar that goes when all are done; none without a name or a terminal."""
    hidden = not (name and Console().is_terminal)
    return progress.track(items, name, total=total, transient=True, disable=hidden)


def metrics_table(metrics: Mapping[str, Any], layers: Sequence[str]) -> None:
    """Print numbers with their standard errors, and expert loads relative to the layer's mean."""
    console = Console()
    table = Table("metric", "value")
    for name, value in metrics.items():
        if isinstance(value, int | float) and not name.endswith(ERROR):
            small = isinstance(value, float) and abs(value) < 1000
            shown = f"{value:.4f}" if small else f"{value:,.0f}"
            error = metrics.get(name + ERROR)
            table.add_row(name, shown if error is None else f"{shown} ± {error:.4f}")
    console.print(table)
    if LOAD in metrics:
        table = Table("layer", "load of each expert (1 = balanced)", title="expert load")
        for layer, counts in zip(layers, metrics[LOAD], strict=True):
            mean = sum(counts) / len(counts) or 1
            table.add_row(layer, "  ".join(f"{count / mean:.2f}" for count in counts))
        console.print(table)
