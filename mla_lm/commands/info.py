"""`python -m mla_lm info [model=small] [key=value] ... [--json]`: what a configuration costs.

Parameters by part, training FLOPs per token, memory of weights, gradients and optimizer state, and
the KV cache of every attention kind: all exact, and computed without allocating the model, or even
importing torch. Says whether this machine has that memory, if it trains on its CPU. Any override of
`train.py` changes the configuration. `measure=true` builds the model and times training steps.
"""

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt

from mla_lm.config import CONFIGS, RunConfig
from mla_lm.config.cli import parse_options
from mla_lm.config.compose import load_config
from mla_lm.cost import (
    bytes_of_ranks,
    cache_elements_per_token,
    count_parameters,
    parameters_by_part,
    train_flops_per_token,
    training_bytes,
)
from mla_lm.errors import UserError
from mla_lm.memory import cpu_memory

BFLOAT16 = 2  # bytes per element
Lengths = Annotated[
    tuple[PositiveInt, ...], BeforeValidator(lambda words: ",".join(words).split(","))
]


class Options(BaseModel):
    """Options besides the overrides of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    contexts: Lengths = Field((4096, 32768, 131072), description="lengths to show the KV cache of")
    measure: bool = Field(False, description="true: time training steps on random tokens")


def run(arguments: Sequence[str]) -> None:
    """Print tables, or one JSON document."""
    own = [word for word in arguments if word.partition("=")[0] in Options.model_fields]
    overrides = [word for word in arguments if word not in own and word != "--json"]
    options = parse_options(Options, own)
    cfg = load_config(overrides)
    found = costs(cfg, overrides)
    if "--json" not in arguments:
        _show(found, options.contexts)
    if options.measure:
        print("timing steps of the whole model", file=sys.stderr)
        from mla_lm.training.plan import measured

        found["measured"] = measured(cfg)
    if "--json" in arguments:
        print(json.dumps(found, indent=2))
    elif options.measure:
        from rich.filesize import decimal

        of_run = found["measured"]
        share = "" if of_run["mfu"] is None else f", {of_run['mfu']:.0%} of matmul peak"
        print(
            f"Measured: {of_run['step_seconds']:.3g} s per step, "
            f"{of_run['tokens_per_second']:,.0f} tokens/s{share}, "
            f"peak memory {decimal(of_run['peak_bytes'])} in a few steps and a validation; a whole "
            "run may take a quarter more"
        )


def costs(cfg: RunConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Everything that is shown; `overrides` composed `cfg`."""
    parts = parameters_by_part(cfg.model).items()
    return {
        "parameters": {
            "parts": {name: part._asdict() for name, part in parts if part.total},
            **count_parameters(cfg.model)._asdict(),
        },
        "train_flops_per_token": train_flops_per_token(cfg.model, cfg.data.seq_len),
        "training_bytes": training_bytes(cfg.model, cfg.optim.kind),
        "kv_cache_bytes_per_token": kv_caches(cfg, overrides),
        "on_this_cpu": on_this_cpu(cfg),
    }


def on_this_cpu(cfg: RunConfig) -> dict[str, int | bool] | None:
    """Whether training, but for its activations, fits this machine's memory; None for a GPU's."""
    if cfg.trainer.accelerator == "gpu":
        return None
    n = 1 if cfg.trainer.devices == "auto" else cfg.trainer.devices
    needed, there = bytes_of_ranks(cfg, n, n_ranks=n), cpu_memory()
    return {"needed_bytes": needed, "memory_bytes": there, "fits": needed <= there}


def kv_caches(cfg: RunConfig, overrides: Sequence[str]) -> dict[str, int | None]:
    """Bytes per token in bfloat16 of every attention kind with the same other overrides.

    None for a kind that these overrides do not fit.
    """
    chosen = ("model.attention", "model/attention")
    others = [word for word in overrides if not word.lstrip("+~").startswith(chosen)]
    options = {path.stem for path in (CONFIGS / "model" / "attention").glob("*.yaml")}
    found: dict[str, int | None] = {}
    for kind in sorted({*options, cfg.model.attention.kind}):
        try:
            same = kind == cfg.model.attention.kind
            other = cfg if same else load_config([*others, f"model/attention={kind}"])
            found[kind] = BFLOAT16 * cache_elements_per_token(other.model)
        except UserError:
            found[kind] = None
    return found


def _show(found: dict[str, Any], contexts: Sequence[int]) -> None:
    from rich.filesize import decimal

    parameters, memory = found["parameters"], found["training_bytes"]
    by_part = {name: (part["total"], part["active"]) for name, part in parameters["parts"].items()}
    by_part["all"] = (parameters["total"], parameters["active"])
    if parameters["mtp"]:
        by_part["MTP modules, besides"] = (parameters["mtp"], parameters["mtp_active"])
    counts = {name: [f"{n:,}" for n in row] for name, row in by_part.items()}
    _table("Parameters", ["total", "active per token"], counts)

    sizes = {**memory, "all": sum(memory.values())}
    _table("Training memory", ["float32"], {name: [decimal(n)] for name, n in sizes.items()})

    caches = {
        kind: [f"{size:,} B", *(decimal(size * n) for n in contexts)] if size else ["-"]
        for kind, size in found["kv_cache_bytes_per_token"].items()
    }
    columns = ["per token", *(f"{n:,} tokens" for n in contexts)]
    _table("KV cache in bfloat16", columns, caches)
    print(f"Training takes {found['train_flops_per_token'] / 1e6:,.1f}M FLOPs per token.")
    print("Activations come on top of the training memory; FSDP2 shares it out among the ranks.")
    if cpu := found["on_this_cpu"]:
        needs = "needs" if cpu["fits"] else "does not fit: it needs"
        there, needed = decimal(cpu["memory_bytes"]), decimal(cpu["needed_bytes"])
        print(f"Training on this machine's CPU {needs} {needed} of {there}, activations besides.")


def _table(title: str, columns: Sequence[str], rows: dict[str, list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    for name, cells in rows.items():
        table.add_row(name, *cells)
    Console(markup=False, emoji=False).print(table)
