"""`python -m mla_lm bench [suite=NAME] [out=FILE.json] ...`: measure this machine against peers.

Each suite checks that both sides give equal results, measures them in interleaved rounds of one
run, and prints medians with their spread. train: a training step on the CPU; decode: decoding with
a KV cache, and drafts of `ckpt=`; quality: bits per byte after equal time; gpu: a training step on
a GPU; all: those for which the machine and the command have what they need.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from mla_lm.config.cli import parse_options
from mla_lm.config.section import PathName
from mla_lm.errors import UserError, output_may_end
from mla_lm.files import require_writable, write_object

Suite = Literal["train", "decode", "quality", "gpu"]


class Options(BaseModel):
    """Options of the suites."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: Suite | Literal["all"] = Field(
        "train", description="train | decode | quality | gpu | all"
    )
    ckpt: PathName | None = Field(None, description="decode: a checkpoint whose MTP modules draft")
    minutes: float = Field(2.0, gt=0, description="quality: training time of each side")
    text: PathName | None = Field(
        None, description="quality: a text of about a megabyte, for the CPU recipe"
    )
    out: PathName | None = Field(None, description="JSON file for the figures")


@output_may_end()
def run(arguments: Sequence[str]) -> None:
    """Print a table; write the figures to `out`."""
    options = parse_options(Options, arguments)
    if options.out:
        require_writable(Path(options.out))

    from mla_lm.bench import decode, quality, train
    from mla_lm.bench.report import Row, show
    from mla_lm.machine import keep_freed_memory

    keep_freed_memory()
    suites: dict[str, Callable[[], list[Row]]] = {
        "train": train.run,
        "decode": lambda: decode.run(options.ckpt),
        "quality": lambda: quality.run(options.minutes, options.text),
        "gpu": train.run_gpu,
    }
    found: dict[str, Any] = {}
    for suite in get_args(Suite) if options.suite == "all" else (options.suite,):
        try:
            rows = suites[suite]()
        except (UserError, ImportError) as error:
            if options.suite != "all":
                raise
            print(f"suite {suite} skipped: {error}", flush=True)
            continue
        found[suite] = [row._asdict() for row in rows]
        if options.out:
            write_object(Path(options.out), found)
        show(f"suite {suite}", rows)
