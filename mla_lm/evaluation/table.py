"""Metrics for the console."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from torch import Tensor


def metrics_table(metrics: Mapping[str, float], load: Tensor | None, layers: Sequence[str]) -> None:
    """Print metrics by name, and the load (L, E) of experts relative to the mean of their layer."""
    console = Console()
    table = Table("metric", "value")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}")
    console.print(table)
    if load is None:
        return
    table = Table("layer", "load of each expert (1 = balanced)", title="expert load")
    for layer, counts in zip(layers, load.float(), strict=True):
        table.add_row(layer, "  ".join(f"{share:.2f}" for share in counts / counts.mean()))
    console.print(table)
