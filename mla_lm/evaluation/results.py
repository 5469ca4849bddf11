"""Metrics on the console, in `metrics.json` with their conditions, and to loggers."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from mla_lm.config import EvalConfig
from mla_lm.config.secret import public
from mla_lm.errors import UserError, inline, warned
from mla_lm.evaluation.subject import Subject
from mla_lm.files import read_object, require_writable, write_object
from mla_lm.machine import hardware

LOAD, ERROR = "moe/load", "_stderr"


def show_results(
    metrics: Mapping[str, Any], parts: Sequence[Iterator[object]], *, layers: Sequence[str]
) -> None:
    """For people: what the parts that have been measured draw, and tables."""
    for part in parts:
        with warned("picture"):
            next(part, None)
    if metrics:
        with warned("table"):
            metrics_table(metrics, layers)


class Results(BaseModel):
    """`metrics.json`: the conditions, and under every other key a metric."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    sha256: str  # of the checkpoint
    precision: str
    limit: int | None
    seq_len: int
    data: Any = None  # where it is not the text of the run

    def numbers(self) -> dict[str, float]:
        """Metrics that are measured rather than counted."""
        found = self.model_extra or {}
        return {name: value for name, value in found.items() if isinstance(value, float)}


def metrics_table(metrics: Mapping[str, Any], layers: Sequence[str]) -> None:
    """Print numbers with their standard errors, and expert loads relative to the layer's mean."""
    console = Console(markup=False, emoji=False)  # names are data
    table = Table("metric", "value")
    for name, value in metrics.items():
        if isinstance(value, int | float) and not name.endswith(ERROR):
            small = isinstance(value, float) and abs(value) < 1000
            shown = f"{value:.4f}" if small else f"{value:,.0f}"
            error = metrics.get(name + ERROR)
            table.add_row(inline(name), shown if error is None else f"{shown} ± {error:.4f}")
    console.print(table)
    if LOAD in metrics:
        table = Table("layer", "load of each expert (1 = balanced)", title="expert load")
        for layer, counts in zip(layers, metrics[LOAD], strict=True):
            mean = sum(counts) / len(counts) or 1
            table.add_row(layer, "  ".join(f"{count / mean:.2f}" for count in counts))
        console.print(table)


def results_file(subject: Subject, cfg: EvalConfig) -> Path:
    """Where `metrics` go; UserError where they cannot."""
    path = subject.folder / f"metrics{cfg.suffix}.json"
    require_writable(path)
    return path


def write_results(
    target: Path, subject: Subject, cfg: EvalConfig, metrics: Mapping[str, Any]
) -> None:
    """Write `metrics`; the file keeps other results of the same conditions and texts."""
    conditions = {
        "ckpt": subject.path.name,
        "step": subject.step,
        "sha256": subject.sha256,
        "precision": subject.precision,
        "limit": cfg.limit,
        "seed": cfg.seed,
        "seq_len": cfg.context or subject.run.data.seq_len,
        "data": public(subject.text),
        "environment": hardware(subject.precision, cfg.accelerator).environment,
    }
    try:
        before = read_object(target)
    except UserError:
        before = {}
    known = {name: value for name, value in metrics.items() if name in before}
    texts = {name: value for name, value in known.items() if name.endswith("/sha256")}
    if before | conditions | texts != before:
        before = {}
    write_object(target, {**before, **conditions, **metrics})


def log_results(
    loggers: Sequence[Any], metrics: Mapping[str, Any], *, step: int, conditions: Sequence[str]
) -> None:
    """Log the numbers under the names of `metrics`, at the step of the checkpoint.

    `conditions` other than those of training stand before them. UserError for a logger that fails.
    """
    prefix = " ".join(public(conditions)) + "/" if conditions else ""
    numbers = {prefix + name: v for name, v in metrics.items() if isinstance(v, int | float)}
    for logger in loggers:
        logger.log_metrics(numbers, step=step)
        logger.save()
        logger.finalize("success")
