"""The tables of a report: what stands in each cell, how it sorts, and which run it comes from."""

import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from mla_lm.ablation.results import Run, configuration
from mla_lm.ablation.statistics import METRICS, Comparison, Spread

Arms = Mapping[str, Sequence[Run]]  # as `statistics.chosen` gives them
Header = tuple[str, str]  # and its explanation
ABSENT = "-"
LOSS = ("val/loss", "nats a token")
AXES = {
    "params": ("params", "MTP modules included"),
    "active_params": ("active params", "those that work on one token"),
    "train_flops": ("FLOPs a token", "of training, in closed form"),
    "kv_bytes": ("cache bytes a token", "in bfloat16"),
}
LOAD = {
    "max_violation": "the busiest expert's load over the mean, less 1",
    "load_entropy": "1 is balance",
    "dead_experts": "without a token in that step",
}


class Cell(NamedTuple):
    """What is read, and `value` to sort by; NaN comes last."""

    text: str
    value: float | str
    links: tuple[tuple[str, str], ...] = ()  # texts and targets, in place of `text`
    kind: str = ""  # verdict, `failed` or `wrapped`, for its look


class Table(NamedTuple):
    """Rows of as many cells as there are headers."""

    key: str
    title: str
    note: str
    headers: Sequence[Header]
    rows: Sequence[Sequence[Cell]]


def tables(
    runs: Sequence[Run], arms: Arms, compared: Sequence[Comparison], *, reference: str, out: Path
) -> list[Table]:
    """Those with rows; links are relative to the folder `out`."""
    found = [
        arm_table(arms, compared, out),
        difference_table(arms, reference),
        rate_table(runs, out),
        load_table(arms),
        run_table(runs, out),
    ]
    return [table for table in found if table.rows]


def arm_table(arms: Arms, compared: Sequence[Comparison], out: Path) -> Table:
    """Quality, difference to the reference, all axes and measured costs of every arm."""
    by_arm = {(one.arm, one.metric): one for one in compared}
    metrics = graded_by(run for runs in arms.values() for run in runs)
    headers: list[Header] = [("arm", ""), ("seeds", "finished runs")]
    for metric in metrics:
        headers.append((metric, f"mean and standard deviation; {METRICS[metric]} is better"))
        difference = f"{metric} less the reference's, paired by seed, and its confidence interval"
        headers += [("difference", difference), ("verdict", "whether the interval holds 0")]
    headers += [LOSS, *AXES.values(), ("step ms", "measured"), ("peak MiB", "measured")]
    rows = []
    for arm, runs in arms.items():
        seeds = tuple((str(run.seed), link(run, out)) for run in runs)
        cells = [_text(arm), Cell("", len(runs), links=seeds)]
        for metric in metrics:
            one = by_arm.get((arm, metric))
            cells.append(_spread(run.final.get(metric) for run in runs))
            cells += _compared(one) if one else [_number(None), _text("reference")]
        axes = runs[0].axes if runs else {}
        cells += [
            _spread(run.val_loss for run in runs),
            *(quantity(axes.get(axis)) for axis in AXES),
            _number(_median(1000 * step_seconds(run) for run in runs), digits=1),
            _number(_median((run.peak_memory or math.nan) / 2**20 for run in runs), digits=0),
        ]
        rows.append(cells)
    note = (
        "Over the seeds that finished, at each arm's best learning rate; a seed links to its run."
    )
    return Table("arms", "Arms", note, headers, rows)


def run_table(runs: Sequence[Run], out: Path) -> Table:
    """Every run, finished or not."""
    metrics = graded_by(runs)
    headers = [
        *(("run", ""), ("arm", ""), ("seed", ""), ("lr", "peak"), ("status", "")),
        ("tokens", "trained on"),
        *((metric, f"{METRICS[metric]} is better") for metric in metrics),
        LOSS,
        ("tokens/s", "of training, median"),
        ("minutes", "of training, validations apart"),
        ("peak MiB", "of the process"),
    ]
    rows = [
        [
            Cell("", run.name, links=((run.name, link(run, out)),)),
            _text(run.arm),
            Cell(str(run.seed), run.seed),
            Cell(f"{run.lr:g}", run.lr),
            Cell(run.status, run.status, kind="" if run.finished else "failed"),
            quantity(run.last.tokens),
            *(_number(run.final.get(metric)) for metric in (*metrics, LOSS[0])),
            _number(run.tokens_per_second, digits=0),
            _number(run.last.seconds / 60, digits=1),
            _number((run.peak_memory or math.nan) / 2**20, digits=0),
        ]
        for run in runs
    ]
    return Table("runs", "Runs", "Each links to its folder.", headers, rows)


def difference_table(arms: Arms, reference: str) -> Table:
    """The keys in which each arm is configured unlike the reference."""
    configurations = {arm: configuration(runs[0].cfg) for arm, runs in arms.items() if runs}
    theirs = configurations.pop(reference, {})
    rows = []
    for arm, ours in configurations.items() if theirs else ():
        keys = [key for key in ours if ours[key] != theirs.get(key, ABSENT)]
        words = " ".join(f"{key}={_shown(ours[key])}" for key in keys)
        rows.append([_text(arm), Cell(words, words, kind="wrapped")])
    note = (
        f"Every key whose value is not that of {reference}, apart from the seed and from where and "
        "what is logged; solved widths are among them."
    )
    return Table("differs", "What differs", note, (("arm", ""), ("in its configuration", "")), rows)


def rate_table(runs: Sequence[Run], out: Path) -> Table:
    """Every run of an arm with several learning rates."""
    rates: dict[str, set[float]] = {}
    for run in runs:
        rates.setdefault(run.arm, set()).add(run.lr)
    swept = [run for run in runs if len(rates[run.arm]) > 1]
    metrics = (*graded_by(swept), LOSS[0])
    rows = [
        [
            _text(run.arm),
            Cell(f"{run.lr:g}", run.lr),
            Cell("", run.seed, links=((str(run.seed), link(run, out)),)),
            *(_number(run.final.get(metric)) for metric in metrics),
        ]
        for run in sorted(swept, key=lambda run: (run.arm, run.lr, run.seed))
    ]
    headers = [("arm", ""), ("lr", "peak"), ("seed", ""), *((metric, "") for metric in metrics)]
    note = "The lowest validation loss on an arm's first seed decides which one is compared."
    return Table("rates", "Learning rates", note, headers, rows)


def load_table(arms: Arms) -> Table:
    """The balance of experts at the last logged step, by layer."""
    rows = []
    for arm, runs in arms.items():
        names = {name for run in runs for name in run.experts if name.count("/") == 2}
        for layer in sorted({name.split("/")[1] for name in names}):
            keys = [f"moe/{layer}/{name}" for name in LOAD]
            values = [[run.experts[key] for run in runs if key in run.experts] for key in keys]
            means = [Spread.of(of_key).mean for of_key in values]
            rows.append([_text(arm), _text(layer), *(_number(mean, digits=3) for mean in means)])
    headers = [("arm", ""), ("layer", ""), *LOAD.items()]
    return Table("load", "Expert load", "At the last logged step, mean over seeds.", headers, rows)


def graded_by(runs: Iterable[Run]) -> list[str]:
    """Those of METRICS that any of the runs has."""
    found = {name for run in runs for name in run.final}
    return [name for name in METRICS if name in found]


def step_seconds(run: Run) -> float:
    """Of an optimizer step, from the median speed; NaN where none was logged."""
    data, n_micro = run.cfg.data, run.cfg.trainer.accumulate_grad_batches
    return data.batch_size * data.seq_len * n_micro / (run.tokens_per_second or math.nan)


def link(run: Run, out: Path) -> str:
    """The folder of a run as a page in `out` names it."""
    path = os.path.relpath(run.folder.resolve(), out.resolve())
    return quote(path.replace(os.sep, "/")) + "/"


def quantity(value: float | None) -> Cell:
    """A count with its first digits: 3.90M."""
    if value is None:
        return _number(None)
    for power, suffix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power * (10 if power == 3 else 0.9995):  # what three digits round up to
            return Cell(f"{value / 10**power:.3g}{suffix}", value)
    return Cell(f"{value:.0f}", value)


def _text(text: str) -> Cell:
    return Cell(text, text)


def _number(value: float | None, *, digits: int = 4) -> Cell:
    if value is None or math.isnan(value):
        return Cell(ABSENT, math.nan)
    return Cell(f"{value:,.{digits}f}", value)


def _median(values: Iterable[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else None


def _spread(values: Iterable[float | None]) -> Cell:
    mean, sd = Spread.of([value for value in values if value is not None])
    text = _number(mean).text
    return Cell(text if math.isnan(sd) else f"{text} ± {sd:.4f}", mean)


def _compared(one: Comparison) -> list[Cell]:
    difference = ABSENT if math.isnan(one.difference) else f"{one.difference:+.4f}"
    if not math.isnan(one.low):
        difference += f" [{one.low:+.4f}, {one.high:+.4f}]"
    verdict = Cell(one.verdict, one.verdict, kind=one.verdict.replace(" ", "-"))
    return [Cell(difference, one.difference), verdict]


def _shown(value: object) -> str:
    """A value as YAML would show it."""
    return value if isinstance(value, str) else json.dumps(value)
