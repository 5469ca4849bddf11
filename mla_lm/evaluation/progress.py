"""Progress bars on a terminal, above which printed text is as safe as without them."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from mla_lm.errors import raw_output, show_controls

T = TypeVar("T")


class Bar(Progress):
    """A bar of rich on a terminal, and nothing elsewhere.

    While it is shown, rich takes what is printed and would follow the escape sequences in it.
    """

    def __init__(self, *columns: str | ProgressColumn, **options: Any) -> None:
        raw = raw_output()
        options |= {"console": Console(file=raw), "disable": not raw.isatty()}
        super().__init__(*columns, **options)

    def start(self) -> None:
        super().start()
        if not self.disable:
            show_controls()


def track(items: Iterable[T], name: str, *, total: int | None = None) -> Iterator[T]:
    """The items, with a progress bar on a terminal that disappears at the end."""
    columns = TextColumn(name), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn()
    with Bar(*columns, transient=True) as bar:
        yield from bar.track(items, total=total)
