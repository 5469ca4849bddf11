"""`python -m mla_lm bench [suite=NAME] [out=FILE.json] ...`: measure this machine.

Suites: data, decode, moe, train, quality, checkpoint, evaluation. Ratios against peers in one
interleaved run, medians with their spread.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mla_lm.cli import parse_options
from mla_lm.errors import UserError


def _split(words: Sequence[str]) -> list[str]:
    return [part for word in words for part in word.split(",")]


Sizes = Annotated[tuple[Annotated[int, Field(gt=0)], ...], BeforeValidator(_split)]


class BenchOptions(BaseModel):
    """What is left out is not measured.

    `megabytes` are the sizes of the corpora that suite `data` prepares; suite `decode` compares
    with `transformers` behind `contexts` tokens, speculates with the checkpoint `ckpt`, and draws
    speed and cache size over the context into `plot`. Suite `evaluation` scores the questions of
    the JSONL file `items` with `ckpt`. Suite `quality` trains for so many `minutes`, twice.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: Literal["data", "decode", "moe", "checkpoint", "evaluation", "train", "quality"] = "data"
    megabytes: Sizes = (25, 100)
    contexts: Sizes = (256, 2048, 4096)
    minutes: Annotated[float, Field(gt=0)] = 2.0
    ckpt: Annotated[str, Field(min_length=1)] | None = None
    items: Annotated[str, Field(min_length=1)] | None = None
    plot: Annotated[str, Field(min_length=1)] | None = None
    out: Annotated[str, Field(min_length=1)] | None = None


def run(arguments: Sequence[str]) -> None:
    """Print a table; write the figures to `out`."""
    options = parse_options(BenchOptions, arguments)
    if options.suite == "evaluation" and not (options.ckpt and options.items):
        raise UserError("suite=evaluation: needs ckpt=PATH and items=FILE.jsonl")
    for path in filter(None, (options.out, options.plot)):
        Path(path).touch()

    import json

    from mla_lm.bench import (
        checkpoint,
        data,
        decode,
        evaluation,
        moe,
        plot,
        quality,
        speculation,
        train,
    )
    from mla_lm.bench.report import show
    from mla_lm.machine import keep_freed_memory

    keep_freed_memory()
    curves: dict[str, object] = {}
    if options.suite == "data":
        rows = data.run(options.megabytes)
    elif options.suite == "moe":
        rows = moe.run()
    elif options.suite == "train":
        rows = train.run()
    elif options.suite == "quality":
        rows = quality.run(options.minutes)
    elif options.suite == "checkpoint":
        rows = checkpoint.run()
    elif options.suite == "evaluation":
        rows = evaluation.run(str(options.ckpt), str(options.items))
    else:
        rows = decode.run(options.contexts)
        if options.ckpt:
            rows += speculation.run(options.ckpt)
        if options.plot:
            curves = {"tokens/s": plot.plot(Path(options.plot))}
    show(f"suite {options.suite}", rows)
    if options.out:
        figures = {"suite": options.suite, "rows": [row._asdict() for row in rows], **curves}
        Path(options.out).write_text(json.dumps(figures, indent=2) + "\n")
