"""`python -m mla_lm bench [suite=NAME] [out=FILE.json] ...`: measure this machine.

Suites: data, decode, moe, train, quality, checkpoint, scale, evaluation, and all, which leaves out
what this machine or command has nothing for. Ratios against peers in one interleaved run, medians
with their spread.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mla_lm.config.cli import parse_options
from mla_lm.errors import UserError

if TYPE_CHECKING:
    from mla_lm.bench.report import Row

Suite = Literal["data", "decode", "moe", "train", "quality", "checkpoint", "scale", "evaluation"]
SUITES: tuple[Suite, ...] = get_args(Suite)


def _split(words: Sequence[str]) -> list[str]:
    return [part for word in words for part in word.split(",")]


Sizes = Annotated[tuple[Annotated[int, Field(gt=0)], ...], BeforeValidator(_split)]
Text = Annotated[str, Field(min_length=1)] | None


class Options(BaseModel):
    """What is left out is not measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: Suite | Literal["all"] = Field("data", description="one of those above")
    megabytes: Sizes = Field((25, 100), description="data: sizes of the corpora prepared")
    contexts: Sizes = Field((256, 2048, 4096), description="decode: tokens behind which to decode")
    minutes: float = Field(2.0, gt=0, description="quality: of each of two trainings")
    ckpt: Text = Field(None, description="decode, evaluation: a checkpoint, to speculate or score")
    items: Text = Field(None, description="evaluation: a JSONL file of questions")
    text: Text = Field(None, description="quality: about a megabyte, for nanoGPT's CPU recipe")
    plot: Text = Field(None, description="decode: an image of speed and cache size by context")
    out: Text = Field(None, description="a JSON file for the figures")


def run(arguments: Sequence[str]) -> None:
    """Print a table; write the figures to `out`."""
    options = parse_options(Options, arguments)
    for path in filter(None, (options.out, options.plot)):
        Path(path).touch()

    import json

    from mla_lm.bench.report import show
    from mla_lm.machine import keep_freed_memory

    keep_freed_memory()
    results = []
    for suite in SUITES if options.suite == "all" else (options.suite,):
        try:
            rows, curves = measure(suite, options)
        except (UserError, ImportError) as error:
            if options.suite != "all":
                raise
            print(f"suite {suite} left out: {error}", flush=True)
            continue
        show(f"suite {suite}", rows)
        results.append({"suite": suite, "rows": [row._asdict() for row in rows], **curves})
        if options.out:
            figures = results if options.suite == "all" else results[0]
            Path(options.out).write_text(json.dumps(figures, indent=2) + "\n")


def measure(suite: str, options: Options) -> "tuple[list[Row], dict[str, object]]":
    """The figures of a suite, and curves drawn; UserError where an option is missing."""
    if suite == "evaluation" and not (options.ckpt and options.items):
        raise UserError("suite=evaluation: needs ckpt=PATH and items=FILE.jsonl")

    from mla_lm.bench import (
        checkpoint,
        data,
        decode,
        evaluation,
        moe,
        plot,
        quality,
        recipe,
        scale,
        train,
    )

    if suite == "decode":
        rows = decode.run(options.contexts)
        if options.ckpt:
            from mla_lm.bench import speculation

            rows += speculation.run(options.ckpt)
        return rows, {"tokens/s": plot.plot(Path(options.plot))} if options.plot else {}
    suites: dict[str, Callable[[], list[Row]]] = {
        "data": lambda: data.run(options.megabytes),
        "moe": moe.run,
        "train": train.run,
        "quality": lambda: (
            quality.run(options.minutes) + (recipe.run(Path(options.text)) if options.text else [])
        ),
        "checkpoint": checkpoint.run,
        "scale": scale.run,
        "evaluation": lambda: evaluation.run(str(options.ckpt), str(options.items)),
    }
    return suites[suite](), {}
