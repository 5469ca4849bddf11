"""A progress bar on a terminal."""

from collections.abc import Iterable
from typing import TypeVar

from rich import progress
from rich.console import Console

T = TypeVar("T")


def track(items: Iterable[T], name: str, *, total: int | None = None) -> Iterable[T]:
    """The items, with a bar that goes when all are done; none without a name or a terminal."""
    console = Console()
    hidden = not (name and console.is_terminal)
    return progress.track(items, name, total=total, console=console, transient=True, disable=hidden)
