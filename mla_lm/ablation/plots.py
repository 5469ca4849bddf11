"""The charts of a report, as SVG to stand inside a page: the same bytes from the same runs.

Lines and letters take the colour of the page's text, so that a dark page stays readable.
"""

import io
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mla_lm.ablation.results import Point, Run
from mla_lm.ablation.statistics import METRICS, Comparison, Spread

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C7A00")  # Okabe-Ito
MARKERS, DASHES = "osD^vPX*", ("-", "--", ":")
VERDICTS = {"better": "#0072B2", "worse": "#D55E00", "not distinguishable": "#808080"}
INK = "#010203"  # becomes the colour of the page's text
CONTEXTS = (4096, 32768, 131072)  # tokens
METADATA = ("Creator", "Date", "Format", "Type")  # left out: they differ between machines
BINS = 40  # of the steps, for what is logged often
STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.size": 10.0,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "legend.frameon": False,
    "lines.markersize": 4.0,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # arms are named by users
    "xtick.color": INK,
    "ytick.color": INK,
}

Arms = Mapping[str, Sequence[Run]]
Curves = dict[str, list[tuple[float, float, float]]]  # (x, mean, standard deviation) by arm


class Chart(NamedTuple):
    """`svg` is an element without a prolog; `key` is unlike those of other charts."""

    key: str
    title: str
    caption: str
    svg: str


def charts(arms: Arms, comparisons: Sequence[Comparison]) -> list[Chart]:
    """Those that there is something to show in; `arms` as `statistics.chosen` gives them."""
    keys = {key for runs in arms.values() for run in runs for key in run.speeds}
    batches = sorted({key.split("/")[2] for key in keys}, key=int)
    found = [
        *(_differences([c for c in comparisons if c.metric == metric]) for metric in METRICS),
        _loss(arms, "tokens", "tokens", lambda point: point.tokens),
        _loss(arms, "FLOPs", "training FLOPs", lambda point: point.flops),
        _loss(arms, "wall clock", "seconds of training", lambda point: point.seconds),
        _pareto(arms),
        _cache(arms),
        *(_speed(arms, batch) for batch in batches),
        _violation(arms),
    ]
    return [chart for chart in found if chart is not None]


def _differences(comparisons: Sequence[Comparison]) -> Chart | None:
    shown = [one for one in comparisons if not math.isnan(one.low)]
    if not shown:
        return None
    first = shown[0]
    key = f"difference-{first.metric.partition('/')[2]}"

    def draw(axes: Any) -> None:
        axes.axvline(0, color=INK, linewidth=0.8)
        for row, one in enumerate(shown):
            colour = VERDICTS[one.verdict]
            axes.plot([one.low, one.high], [row, row], linewidth=2, color=colour)
            axes.plot([one.difference], [row], marker="o", markersize=6, color=colour)
        axes.set_yticks(range(len(shown)), [one.arm for one in shown])
        axes.set(xlabel=f"{first.metric}, arm - {first.reference}", ylim=(len(shown) - 0.5, -0.5))
        axes.margins(x=0.08)
        axes.locator_params(axis="x", nbins=6)

    svg = _draw(key, draw, legend=(), height=1.0 + 0.35 * len(shown))
    caption = (
        f"Mean paired difference to {first.reference} and its {100 * (first.confidence or 0):g} % "
        "confidence interval; grey where it holds 0."
    )
    return Chart(key, f"Difference in {first.metric}", caption, svg)


def _loss(arms: Arms, name: str, unit: str, x_of: Callable[[Point], float]) -> Chart | None:
    curves = {
        arm: _over_seeds(
            [{p.step: (x_of(p), p.metrics["val/loss"]) for p in r.curve} for r in runs]
        )
        for arm, runs in arms.items()
    }
    key = f"loss-{name.lower().replace(' ', '-')}"
    svg = _lines(key, curves, xlabel=unit, ylabel="val/loss, nats a token", marker=True)
    caption = "Mean over seeds; the band is one standard deviation."
    return Chart(key, f"Validation loss against {name}", caption, svg) if svg else None


def _violation(arms: Arms) -> Chart | None:
    curves: Curves = {}
    for arm, runs in arms.items():
        whole = _over_seeds([{s: (s, value) for s, value in run.violation} for run in runs])
        parts = np.array_split(np.array(whole), min(BINS, len(whole))) if whole else []
        means = [part.mean(axis=0) for part in parts]
        curves[arm] = [(float(mean[0]), float(mean[1]), float(mean[2])) for mean in means]
    svg = _lines("violation", curves, xlabel="step", ylabel="max_violation", bottom=0)
    caption = (
        "The busiest expert's load over the mean of its layer, less 1: 0 is balance. Mean over "
        f"layers and seeds in {BINS} parts of the training; the band is one standard deviation "
        "between seeds."
    )
    return Chart("violation", "Expert load balance over training", caption, svg) if svg else None


def _speed(arms: Arms, batch: str) -> Chart | None:
    curves: Curves = {}
    for arm, runs in arms.items():
        by_context: dict[int, list[float]] = {}
        for run in runs:
            for key, speed in run.speeds.items():
                kind, context, of_batch = key.split("/")
                if (kind, of_batch) == ("decode", batch):
                    by_context.setdefault(int(context), []).append(speed)
        curves[arm] = [
            (context, statistics.median(by_context[context]), 0.0) for context in sorted(by_context)
        ]
    key = f"decode-{batch}"
    axis = "tokens of context"
    svg = _lines(key, curves, xlabel=axis, ylabel="tokens/s", marker=True, bottom=0)
    caption = "Measured with a cache, the median over the runs that were profiled."
    return Chart(key, f"Decoding speed, batch {batch}", caption, svg) if svg else None


def _pareto(arms: Arms) -> Chart | None:
    points = {
        arm: (runs[0].axes["kv_bytes"], *Spread.of([run.val_bpb for run in runs]))
        for arm, runs in arms.items()
        if runs
    }
    if not points:
        return None
    frontier: list[tuple[float, float]] = []
    for n_bytes, mean, _ in sorted(points.values()):
        if not frontier or mean < frontier[-1][1]:
            frontier.append((n_bytes, mean))
    styles = _styles({arm: arm in points for arm in arms})

    def draw(axes: Any) -> None:
        axes.plot(*zip(*frontier, strict=True), color=INK, alpha=0.4, linewidth=1, linestyle="--")
        for arm, (n_bytes, mean, sd) in points.items():
            style = {**styles[arm], "linestyle": "none", "markersize": 7, "capsize": 3}
            axes.errorbar([n_bytes], [mean], yerr=[np.nan_to_num(sd)], **style)
        axes.set(xlabel="bytes of cache a token, bfloat16", ylabel="val/bpb", xlim=(0, None))

    svg = _draw("pareto", draw, legend=[*styles.values()])
    caption = (
        "Lower and further left is better. Bars are one standard deviation over seeds; the dashed "
        "line joins the arms that no other beats on both."
    )
    return Chart("pareto", "Quality against cache", caption, svg)


def _cache(arms: Arms) -> Chart | None:
    curves: Curves = {
        arm: [(n, n * runs[0].axes["kv_bytes"] / 2**20, 0.0) for n in CONTEXTS] if runs else []
        for arm, runs in arms.items()
    }
    ticks = {n: f"{n // 1024}k" for n in CONTEXTS}
    svg = _lines(
        "cache",
        curves,
        xlabel="tokens of context",
        ylabel="MiB a sequence",
        marker=True,
        ticks=ticks,
    )
    caption = "In bfloat16, both axes logarithmic; lines of equal caches hide one another."
    return Chart("cache", "Cache against context", caption, svg) if svg else None


def _over_seeds(
    runs: Sequence[Mapping[int, tuple[float, float]]],
) -> list[tuple[float, float, float]]:
    """Mean x, mean y and standard deviation of y at the steps that all runs have; NaN x are out."""
    steps = set.intersection(*(set(run) for run in runs)) if runs else set()
    found = []
    for step in sorted(steps):
        x = statistics.mean(run[step][0] for run in runs)
        mean, sd = Spread.of([run[step][1] for run in runs])
        if not math.isnan(x):
            found.append((x, mean, float(np.nan_to_num(sd))))
    return found


def _lines(
    key: str,
    curves: Curves,
    *,
    xlabel: str,
    ylabel: str,
    marker: bool = False,
    bottom: float | None = None,
    ticks: Mapping[int, str] | None = None,
) -> str | None:
    """A line with its band an arm; logarithmic where ticks are given. None without a point."""
    styles = _styles(curves)
    if not styles:
        return None
    from matplotlib.ticker import EngFormatter, LogLocator

    def draw(axes: Any) -> None:
        for arm, style in styles.items():
            x, mean, sd = (np.array(values) for values in zip(*curves[arm], strict=True))
            axes.plot(x, mean, **(style if marker else {**style, "marker": ""}))
            if sd.any():
                band = {"color": style["color"], "alpha": 0.2, "linewidth": 0}
                axes.fill_between(x, mean - sd, mean + sd, **band)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if ticks:
            axes.set(xscale="log", yscale="log")
            axes.set_xticks([*ticks], [*ticks.values()])
            axes.set_xticks([], minor=True)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.set_xlim(0, None)
            if bottom is not None:
                axes.set_ylim(bottom, 1.05 * axes.get_ylim()[1])

    legend = [style if marker else {**style, "marker": ""} for style in styles.values()]
    return _draw(key, draw, legend=legend)


def _styles(curves: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A look for each arm that has anything to show, the same in every chart."""
    n = len(COLOURS)
    return {
        arm: {
            "color": COLOURS[index % n],
            "marker": MARKERS[index % len(MARKERS)],
            "linestyle": DASHES[index // n % len(DASHES)],
            "label": arm,
        }
        for index, arm in enumerate(curves)
        if curves[arm]
    }


def _draw(
    key: str,
    draw: Callable[[Any], None],
    *,
    legend: Sequence[Mapping[str, Any]],
    height: float = 3.6,
) -> str:
    """The SVG of what `draw` puts into axes, with a legend of these styles below."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    written = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": key}):
        figure = Figure(figsize=(5.6, height), layout="constrained")
        draw(figure.subplots())
        if legend:
            handles = [Line2D([], [], **style) for style in legend]
            figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4))
        figure.savefig(written, format="svg", metadata=dict.fromkeys(METADATA))
    svg = written.getvalue()
    svg = re.sub(r'<g id="[\w.]+">', "<g>", svg[svg.index("<svg") :])  # not unique in a page
    return svg.replace(INK, "currentColor")
