"""The figures of a report as SVG images: the same bytes from the same runs."""

import io
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import matplotlib
import pandas as pd
import seaborn
from matplotlib import pyplot
from matplotlib.ticker import EngFormatter
from pandas import DataFrame

from mla_lm.ablation.statistics import NO_INTERVAL, Comparison

VERDICTS = {"better": "C0", "worse": "C3", "not distinguishable": "C7"}
CONTEXTS = (4096, 32768, 131072)  # tokens
BINS = 40  # of the steps, for what is logged often
Drawn = tuple[str, str, str]  # title, caption, the source of an image in a page
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.alpha": 0.3,
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,  # arms are named by users
}


def draw(
    best: DataFrame, curves: DataFrame, compared: Sequence[Comparison], reference: str
) -> list[Drawn]:
    """The figures that there is something to show in; `best` as `statistics.chosen` gives it."""
    curves = best[["run", "arm"]].merge(curves, on="run")  # arms in one order, for one colour
    shown = [one for one in compared if one.verdict != NO_INTERVAL]
    with matplotlib.rc_context(STYLE):
        drawn = [_differences(shown, reference)] if shown else []
        drawn += [_losses(curves), _quality(best), _context(best)] if len(best) else []
        return drawn + ([_balance(curves)] if curves["moe/max_violation"].notna().any() else [])


def _differences(compared: Sequence[Comparison], reference: str) -> Drawn:
    grid = seaborn.FacetGrid(
        DataFrame(compared), col="metric", sharex=False, height=1.2 + 0.35 * len(compared), aspect=2
    )
    for metric, axes in grid.axes_dict.items():
        axes.axvline(0, color="black", linewidth=0.8)
        for one in reversed([one for one in compared if one.metric == metric]):
            look = {"fmt": "o", "color": VERDICTS[one.verdict], "capsize": 3}
            axes.errorbar([one.difference], [one.arm], xerr=(one.high - one.low) / 2, **look)
        axes.set(title="", xlabel=f"{metric}, arm - {reference}")
        axes.margins(y=0.2)
    caption = "Mean paired difference and its confidence interval; grey where it contains 0."
    return _drawn(f"Differences to {reference}", caption, grid)


def _losses(curves: DataFrame) -> Drawn:
    curves = curves[curves.validated]
    times = curves.groupby(["arm", "step"]).seconds
    curves = curves.assign(seconds=times.transform("mean"))  # of the seeds, to average at
    labels = {"flops": "training FLOPs", "seconds": "seconds of training"}
    long = curves.rename(columns=labels).melt(["arm", "val/loss"], ["tokens", *labels.values()])
    grid = _lines(long.dropna(), "value", "val/loss", col="variable")
    for label, axes in grid.axes_dict.items():
        axes.set(xlabel=label, ylabel="val/loss, nats per token")
    caption = "Mean over seeds; the band is one standard deviation. Seconds leave validation out."
    return _drawn("Validation loss against what was spent", caption, grid)


def _quality(best: DataFrame) -> Drawn:
    grid = _lines(best, "kv_bytes", "val/bpb", err_style="bars", markersize=8)
    grid.set_xlabels("bytes of KV cache per token, bfloat16")
    caption = "Lower and further left is better. Bars are one standard deviation over seeds."
    return _drawn("Quality against KV cache", caption, grid)


def _context(best: DataFrame) -> Drawn:
    speeds = best.melt("arm", [name for name in best if name.startswith("decode/")]).dropna()
    speeds = speeds.join(speeds.variable.str.extract(r"/(?P<context>\d+)/(?P<batch>\d+)"))
    speeds = speeds.assign(
        context=speeds.context.astype(int), variable="decoded tokens/s, batch " + speeds.batch
    )
    caches = best[["arm", "kv_bytes"]].merge(DataFrame({"context": CONTEXTS}), how="cross")
    caches["variable"] = "MiB of KV cache per sequence"
    caches["value"] = caches.kv_bytes * caches.context / 2**20
    grid = _lines(pd.concat([caches, speeds]), "context", "value", col="variable")
    for label, axes in grid.axes_dict.items():
        axes.set(xlabel="tokens of context", ylabel=label, ylim=(0, None))
    caption = "KV cache in bfloat16. Speeds are the mean over seeds."
    return _drawn("KV cache and decoding speed against context", caption, grid)


def _balance(curves: DataFrame) -> Drawn:
    logged = curves.dropna(subset="moe/max_violation")
    width = -(-logged.step.max() // BINS)
    binned = logged.assign(step=logged.step // width * width)
    grid = _lines(binned, "step", "moe/max_violation", markers=False)
    grid.set(ylim=(0, None))
    caption = (
        "The busiest expert's load over the mean of its layer, less 1: 0 is balance. Mean over "
        "layers, seeds and neighbouring steps; the band is one standard deviation."
    )
    return _drawn("Expert load balance over training", caption, grid)


def _lines(data: DataFrame, x: str, y: str, **options: Any) -> seaborn.FacetGrid:
    """A grid of axes with the mean of each arm and its standard deviation."""
    look = {"hue": "arm", "style": "arm", "palette": "colorblind", "markers": True, "dashes": False}
    facets = {"sharex": False, "sharey": False}
    own = {"kind": "line", "errorbar": "sd", "height": 3.4, "facet_kws": facets}
    grid = seaborn.relplot(data, x=x, y=y, **(own | look | options)).set(title="", xlim=(0, None))
    for axes in grid.axes.flat:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return grid


def _drawn(title: str, caption: str, grid: seaborn.FacetGrid) -> Drawn:
    grid.tight_layout()
    written = io.BytesIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # differ between machines
    grid.savefig(written, format="svg", metadata=metadata)
    pyplot.close(grid.figure)
    encoded = b64encode(written.getvalue()).decode()
    return title, caption, f"data:image/svg+xml;base64,{encoded}"
