"""`python -m mla_lm info [model=small] [key=value] ... [--json]`: what a configuration costs.

Parameters by part, training FLOPs, memory and, by a measurement of five seconds on this machine,
the time of the run; the cache of all attention kinds side by side. Any KEY=VALUE of `train.py` says
which configuration, `--json` asks for one JSON document.
"""

import json
import os
import re
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from mla_lm.config import CONFIGS
from mla_lm.config.cli import parse_options
from mla_lm.config.compose import load_config
from mla_lm.errors import UserError

if TYPE_CHECKING:
    from mla_lm.config import RunConfig

CONTEXTS = (4096, 32768, 131072)
SECONDS = 5.0
ROUNDED = 999.5  # to three digits it is 1,000
CACHED = 2  # bytes a number, in bfloat16
OF_ATTENTION = re.compile(r"[+~]*model[./]attention\b")  # words that choose a kind or its keys


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
    found = {**sizes(cfg), "cache": caches(cfg, words), **training(cfg, options.tokens)}
    if "--json" in arguments:
        print(json.dumps(found, indent=2))
    else:
        _show(found)


def sizes(cfg: "RunConfig") -> dict[str, Any]:
    """Parameters and FLOPs a token, from the formulae."""
    from mla_lm.cost import count_parameters, parameters_by_part, train_flops_per_token

    parts = parameters_by_part(cfg.model).items()
    return {
        "parameters": {
            "parts": {name: part._asdict() for name, part in parts if part.total},
            **count_parameters(cfg.model)._asdict(),
        },
        "train_flops_per_token": train_flops_per_token(cfg.model, cfg.data.seq_len),
    }


def caches(cfg: "RunConfig", words: Sequence[str]) -> dict[str, int | None]:
    """Bytes a token in bfloat16 of every attention kind with the sizes of the preset.

    `words` made `cfg`; None for another kind that does not go with them.
    """
    from mla_lm.cost import cache_numbers_per_token

    others = [word for word in words if not OF_ATTENTION.match(word)]

    def cache(kind: str) -> int | None:
        if kind == cfg.model.attention.kind:
            return CACHED * cache_numbers_per_token(cfg.model)
        try:
            other = load_config([*others, f"model/attention={kind}"])
        except UserError:
            return None
        return CACHED * cache_numbers_per_token(other.model)

    options = {path.stem for path in (CONFIGS / "model" / "attention").glob("*.yaml")}
    return {kind: cache(kind) for kind in sorted({*options, cfg.model.attention.kind})}


def training(cfg: "RunConfig", budget: float | None) -> dict[str, Any]:
    """Bytes of one process; tokens a second of all, and the seconds of the run.

    One process is measured, with its share of the rows and all weights; where that needs more
    memory than is free, speed and time are None.
    """
    import torch

    from mla_lm.machine import accelerator_type, free_memory, resolve_precision
    from mla_lm.memory import training_memory

    device = accelerator_type(cfg.trainer.accelerator)
    precision = resolve_precision(cfg.precision, device)
    memory = partial(training_memory, precision=precision, on_gpu=device == "cuda")
    n = n_processes(cfg, device)
    share = cfg.data.model_copy(update={"batch_size": cfg.data.batch_size // n})
    one = cfg.model_copy(update={"data": share})
    planned = cfg.trainer.max_steps * cfg.data.batch_size * cfg.data.seq_len
    found: dict[str, Any] = {
        "precision": precision,
        "processes": n,
        "training_bytes": memory(cfg, n_processes=n),
        "tokens": int(budget or planned * cfg.trainer.accumulate_grad_batches),
        "measuring_bytes": sum(memory(one).values()),
        "free_bytes": free_memory(device),
    }
    if found["measuring_bytes"] > found["free_bytes"]:
        return {**found, "tokens_per_second": None, "seconds": None}
    if "OMP_NUM_THREADS" not in os.environ:  # as each of them would have
        torch.set_num_threads(max(1, torch.get_num_threads() // n))
    speed = n * tokens_per_second(one, device, precision)
    return {**found, "tokens_per_second": speed, "seconds": found["tokens"] / speed}


def n_processes(cfg: "RunConfig", device: str) -> int:
    """How many `train.py` starts here; UserError where the rows do not divide among them."""
    import torch

    n = cfg.trainer.devices
    if n == "auto":
        n = torch.cuda.device_count() if device == "cuda" else 1
    if cfg.data.batch_size % n:
        rows = f"data.batch_size={cfg.data.batch_size}"
        raise UserError(f"{rows}: must be a multiple of the {n} processes")
    return n


def tokens_per_second(cfg: "RunConfig", device: str, precision: str) -> float:
    """Of one process with all rows of `cfg`; of fewer, where they would take long."""
    import torch

    from mla_lm.bench import steps
    from mla_lm.machine import keep_freed_memory

    keep_freed_memory()
    side = steps.ours(cfg, device)
    number_format = "float32" if precision == "32-true" else "bfloat16"
    shape = (cfg.data.batch_size, cfg.data.seq_len + 1)
    batch = torch.randint(cfg.model.vocab_size, shape).to(device)
    row = min(steps.seconds(side, batch[:1], number_format) for _ in range(2))
    batch = batch[: max(1, int(SECONDS / 3 / row))]
    steps.seconds(side, batch, number_format)  # what is compiled is compiled for a shape
    spent: list[float] = []
    started = time.monotonic()
    while not spent or time.monotonic() - started < SECONDS:
        spent.append(steps.seconds(side, batch, number_format))
    return batch[:, 1:].numel() / statistics.median(spent)


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

    of = "one process" if found["processes"] == 1 else f"one of {found['processes']} processes"
    table = Table(f"training, {of}", "size", title=f"Memory, {found['precision']}")
    for name, size in found["training_bytes"].items():
        table.add_row(name, _bytes(size))
    table.add_section()
    table.add_row("all, estimated", _bytes(sum(found["training_bytes"].values())))
    console.print(_right(table))

    columns = [f"{n // 1024}k tokens" for n in CONTEXTS]
    table = Table("cache in bfloat16", "bytes a token", *columns, title="Decoding")
    for kind, size in found["cache"].items():
        told = [f"{size:,}", *(_bytes(size * n) for n in CONTEXTS)] if size else ["-"]
        table.add_row(kind, *told)
    console.print(_right(table))

    console.print(f"training: {found['train_flops_per_token'] / 1e6:,.1f} MFLOP a token")
    console.print(f"{found['tokens'] / 1e6:,.1f}M tokens: {_time(found)}")


def _time(found: dict[str, Any]) -> str:
    if found["seconds"] is None:
        needed, free = _bytes(found["measuring_bytes"]), _bytes(found["free_bytes"])
        return f"not measured, which takes {needed}; {free} are free here"
    speed = f"{found['tokens_per_second']:,.0f} tokens/s"
    n = found["processes"]
    how = "" if n == 1 else f", one process measured, times {n}"
    return f"{_duration(found['seconds'])} on this machine, at {speed}{how}"


def _right(table: Any) -> Any:
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < ROUNDED or unit == "TB":
            break
        size /= 1000
    return f"{size:,.3g} {unit}" if size < ROUNDED else f"{size:,.0f} {unit}"


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} seconds"
