"""Progress bars, above which printed text is as safe as without them."""

from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn

from mla_lm.errors import raw_output, show_controls


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
