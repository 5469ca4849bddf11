"""`python -m mla_lm info [model=small] [key=value] ... [--json]`: what a configuration costs.

Parameters by part, training FLOPs, memory and, by a measurement of five seconds on this machine,
the time of the run; the cache of all attention kinds side by side. Any KEY=VALUE of `train.py` says
which configuration, `--json` asks for one JSON document.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from mla_lm.cli import load_config, parse_options
from mla_lm.config import CONFIGS

if TYPE_CHECKING:
    from mla_lm.config import RunConfig

CONTEXTS = (4096, 32768, 131072)
SECONDS = 5.0
CACHED = 2  # bytes a number, in bfloat16


class Options(BaseModel):
    """Beside the overrides of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    tokens: float | None = Field(
        None, ge=1, lt=1e18, description="whose time is told, as 3e9; else those of the run"
    )


def run(arguments: Sequence[str]) -> None:
    """Print tables, or one JSON document."""
    words = [word for word in arguments if word != "--json" and not word.startswith("tokens=")]
    options = parse_options(Options, [w for w in arguments if w.startswith("tokens=")])
    cfg = load_config(words)
    found = {**sizes(cfg), "cache": caches(words), **time_of(cfg, options.tokens)}
    if "--json" in arguments:
        print(json.dumps(found, indent=2))
    else:
        _show(found)


def sizes(cfg: "RunConfig") -> dict[str, Any]:
    """Parameters, FLOPs a token and bytes of training, from the formulae."""
    from mla_lm.accounting import count_parameters, parameters_by_part, train_flops_per_token
    from mla_lm.machine import accelerator_type, resolve_precision
    from mla_lm.memory import training_memory

    parameters = count_parameters(cfg.model)
    device = accelerator_type(cfg.trainer.accelerator)
    precision = resolve_precision(cfg.precision, device)
    return {
        "parameters": {
            "parts": {
                name: part._asdict()
                for name, part in parameters_by_part(cfg.model).items()
                if part.total
            },
            **parameters._asdict(),
        },
        "train_flops_per_token": train_flops_per_token(cfg.model, cfg.data.seq_len),
        "training_bytes": training_memory(cfg, precision, on_gpu=device == "cuda"),
        "precision": precision,
    }


def caches(words: Sequence[str]) -> dict[str, int]:
    """Bytes a token in bfloat16 of every attention kind with the sizes of the preset."""
    from mla_lm.accounting import cache_numbers_per_token

    chosen = load_config(words).model
    others = [w for w in words if not w.startswith(("model/attention", "model.attention."))]
    kinds = sorted(path.stem for path in (CONFIGS / "model" / "attention").glob("*.yaml"))
    models = {kind: load_config([*others, f"model/attention={kind}"]).model for kind in kinds}
    models[chosen.attention.kind] = chosen
    return {kind: CACHED * cache_numbers_per_token(model) for kind, model in models.items()}


def time_of(cfg: "RunConfig", budget: float | None) -> dict[str, Any]:
    """Tokens a second here, and the seconds of the run; neither where it needs more memory.

    Where a row takes long, fewer rows than a batch has are measured.
    """
    import time

    import torch

    from mla_lm.bench import steps
    from mla_lm.machine import (
        accelerator_type,
        free_memory,
        keep_freed_memory,
        resolve_precision,
    )
    from mla_lm.memory import training_memory

    device = accelerator_type(cfg.trainer.accelerator)
    precision = resolve_precision(cfg.precision, device)
    n_tokens = cfg.data.batch_size * cfg.data.seq_len
    planned = cfg.trainer.max_steps * n_tokens * cfg.trainer.accumulate_grad_batches
    needed = sum(training_memory(cfg, precision, on_gpu=device == "cuda").values())
    found = {"tokens": int(budget or planned), "free_bytes": free_memory(device)}
    if needed > found["free_bytes"]:
        return {**found, "tokens_per_second": None, "seconds": None}
    keep_freed_memory()
    side = steps.ours(cfg, device)
    number_format = "float32" if precision == "32-true" else "bfloat16"
    shape = (cfg.data.batch_size, cfg.data.seq_len + 1)
    batch = torch.randint(cfg.model.vocab_size, shape).to(device)
    row = min(steps.seconds(side, batch[:1], number_format) for _ in range(2))
    batch = batch[: max(1, int(SECONDS / 3 / row))]
    spent: list[float] = []
    started = time.monotonic()
    while not spent or time.monotonic() - started < SECONDS:
        spent.append(steps.seconds(side, batch, number_format))
    speed = batch[:, 1:].numel() / sorted(spent)[len(spent) // 2]
    return {**found, "tokens_per_second": speed, "seconds": found["tokens"] / speed}


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    parameters = found["parameters"]
    table = Table("parameters", "total", "active", title="Model")
    for name, part in parameters["parts"].items():
        table.add_row(name, f"{part['total']:,}", f"{part['active']:,}")
    table.add_section()
    table.add_row("all", f"{parameters['total']:,}", f"{parameters['active']:,}")
    if parameters["mtp"]:
        table.add_row("MTP", f"{parameters['mtp']:,}", f"{parameters['mtp_active']:,}")
    console.print(_right(table))

    table = Table("training, one process", "size", title=f"Memory, {found['precision']}")
    for name, size in found["training_bytes"].items():
        table.add_row(name, _bytes(size))
    table.add_section()
    table.add_row("all, estimated", _bytes(sum(found["training_bytes"].values())))
    console.print(_right(table))

    columns = [f"{n // 1024}k tokens" for n in CONTEXTS]
    table = Table("cache in bfloat16", "bytes a token", *columns, title="Decoding")
    for kind, size in found["cache"].items():
        table.add_row(kind, f"{size:,}", *(_bytes(size * n) for n in CONTEXTS))
    console.print(_right(table))

    console.print(f"training: {found['train_flops_per_token'] / 1e6:,.1f} MFLOP a token")
    tokens = f"{found['tokens'] / 1e6:,.1f}M tokens"
    if found["seconds"] is None:
        console.print(f"{tokens}: not measured, {_bytes(found['free_bytes'])} are free here")
    else:
        speed = f"{found['tokens_per_second']:,.0f} tokens/s"
        console.print(f"{tokens}: {_duration(found['seconds'])} on this machine, at {speed}")


def _right(table: Any) -> Any:
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:,.3g} {unit}" if size < 1000 else f"{size:,.0f} {unit}"


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} seconds"
