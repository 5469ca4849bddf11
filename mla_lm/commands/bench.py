"""`python -m mla_lm bench [suite=data] [megabytes=25,100] [out=FILE.json]`: measure this machine.

Ratios against peers in one interleaved run, medians with their spread.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mla_lm.cli import parse_options


def _split(words: object) -> object:
    return words.split(",") if isinstance(words, str) else words


class BenchOptions(BaseModel):
    """`megabytes` are the sizes of the corpora that suite `data` prepares."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: Literal["data"] = "data"
    megabytes: Annotated[tuple[Annotated[int, Field(gt=0)], ...], BeforeValidator(_split)] = (
        25,
        100,
    )
    out: Annotated[str, Field(min_length=1)] | None = None


def run(arguments: Sequence[str]) -> None:
    """Print a table; write the figures to `out`."""
    options = parse_options(BenchOptions, arguments)
    if options.out:
        Path(options.out).touch()

    import json

    from mla_lm.bench import data
    from mla_lm.bench.report import show
    from mla_lm.machine import keep_freed_memory

    keep_freed_memory()
    rows = data.run(options.megabytes)
    show(f"suite {options.suite}", rows)
    if options.out:
        figures = {"suite": options.suite, "rows": [row._asdict() for row in rows]}
        Path(options.out).write_text(json.dumps(figures, indent=2) + "\n")
