"""The figures of a report as SVG images: the same bytes from the same runs."""

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mla_lm.ablation.statistics import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

VERDICTS = {"better": "C0", "worse": "C3", "not distinguishable": "C7"}
CONTEXTS = {4096: "4k", 32768: "32k", 131072: "128k"}  # tokens
BINS = 40  # of the steps, for what is logged often
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,  # arms are named by users
}


class Drawn(NamedTuple):
    """A figure and what it shows."""

    title: str
    caption: str
    figure: "Figure"

    def uri(self) -> str:
        """The figure as the source of an image in a page."""
        import matplotlib

        written = io.BytesIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # differ between machines
        with matplotlib.rc_context(STYLE):
            self.figure.savefig(written, format="svg", metadata=metadata)
        return f"data:image/svg+xml;base64,{base64.b64encode(written.getvalue()).decode()}"


def draw(
    best: "DataFrame", curves: "DataFrame", compared: Sequence[Comparison], reference: str
) -> list[Drawn]:
    """The figures that there is something to show in; `best` as `statistics.chosen` gives it."""
    import matplotlib

    curves = best[["run", "arm"]].merge(curves, on="run")  # arms in one order, for one colour
    shown = [one for one in compared if one.verdict != "no interval"]
    with matplotlib.rc_context(STYLE):
        drawn = [_differences(shown, reference)] if shown else []
        drawn += [_losses(curves), _quality(best), _context(best)] if len(best) else []
        return drawn + ([_balance(curves)] if curves["moe/max_violation"].notna().any() else [])


def _differences(compared: Sequence[Comparison], reference: str) -> Drawn:
    metrics = list(dict.fromkeys(one.metric for one in compared))
    arms = list(dict.fromkeys(one.arm for one in compared))
    figure, panels = _panels(len(metrics), height=1.2 + 0.35 * len(arms))
    for metric, axes in zip(metrics, panels, strict=True):
        axes.axvline(0, color="black", linewidth=0.8)
        for one in compared:
            if one.metric == metric:
                half = (one.high - one.low) / 2
                look = {"fmt": "o", "color": VERDICTS[one.verdict], "capsize": 3}
                axes.errorbar(one.difference, arms.index(one.arm), xerr=half, **look)
        axes.set_yticks(range(len(arms)), arms)
        axes.set(xlabel=f"{metric}, arm - {reference}", ylim=(len(arms) - 0.5, -0.5))
        axes.locator_params(axis="x", nbins=5)
    caption = "Mean paired difference and its confidence interval; grey where it contains 0."
    return Drawn(f"Differences to {reference}", caption, figure)


def _losses(curves: "DataFrame") -> Drawn:
    from matplotlib.ticker import EngFormatter

    curves = curves[curves.validated]
    times = curves.groupby(["arm", "step"]).seconds
    curves = curves.assign(seconds=times.transform("mean"))  # of the seeds, to average at
    spent = {"tokens": "tokens", "flops": "training FLOPs"}
    spent |= {"seconds": "seconds of training"} if curves.seconds.notna().any() else {}
    figure, panels = _panels(len(spent))
    for (key, label), axes in zip(spent.items(), panels, strict=True):
        _lines(axes, curves, key, "val/loss")
        axes.set(xlabel=label, ylabel="val/loss, nats per token", xlim=(0, None))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.locator_params(axis="x", nbins=5)
    caption = "Mean over seeds; the band is one standard deviation. Seconds leave validation out."
    return Drawn("Validation loss against what was spent", caption, figure)


def _quality(best: "DataFrame") -> Drawn:
    figure, panels = _panels(1)
    _lines(panels[0], best, "kv_bytes", "val/bpb", err_style="bars", markersize=8)
    panels[0].margins(x=0.1)
    panels[0].set(xlabel="bytes of KV cache per token, bfloat16", xlim=(0, None))
    caption = "Lower and further left is better. Bars are one standard deviation over seeds."
    return Drawn("Quality against KV cache", caption, figure)


def _context(best: "DataFrame") -> Drawn:
    import pandas as pd

    measured = best.melt("arm", [name for name in best if name.startswith("decode/")]).dropna()
    names = measured.variable.str.extract(r"decode/(?P<context>\d+)/(?P<batch>\d+)").astype(int)
    speeds = measured.join(names)
    caches = best[["arm", "kv_bytes"]].merge(pd.DataFrame({"context": [*CONTEXTS]}), how="cross")
    caches["MiB of KV cache per sequence"] = caches.kv_bytes * caches.context / 2**20
    figure, panels = _panels(1 + speeds.batch.nunique())
    _lines(panels[0], caches, "context", "MiB of KV cache per sequence")
    panels[0].set(xscale="log", yscale="log")
    panels[0].set_xticks([*CONTEXTS], [*CONTEXTS.values()])
    panels[0].set_xticks([], minor=True)
    panels[0].yaxis.set_major_formatter("{x:g}")
    for axes, (batch, rows) in zip(panels[1:], speeds.groupby("batch"), strict=True):
        _lines(axes, rows, "context", "value")
        axes.set(ylabel=f"decoded tokens/s, batch {batch}", ylim=(0, None))
    for axes in panels:
        axes.set_xlabel("tokens of context")
    caption = "KV cache in bfloat16, both axes logarithmic. Speeds are the mean over seeds."
    return Drawn("KV cache and decoding speed against context", caption, figure)


def _balance(curves: "DataFrame") -> Drawn:
    logged = curves.dropna(subset="moe/max_violation")
    width = -(-logged.step.max() // BINS)
    binned = logged.assign(step=(logged.step - 1) // width * width + width / 2)
    means = binned.groupby(["arm", "run", "step"], sort=False, as_index=False)
    figure, panels = _panels(1)
    _lines(panels[0], means["moe/max_violation"].mean(), "step", "moe/max_violation", markers=False)
    panels[0].set(xlim=(0, None), ylim=(0, None))
    caption = (
        "The busiest expert's load over the mean of its layer, less 1: 0 is balance. Mean over "
        "layers, seeds and neighbouring steps; the band is one standard deviation between seeds."
    )
    return Drawn("Expert load balance over training", caption, figure)


def _panels(n: int, *, height: float = 3.4) -> tuple["Figure", Any]:
    """A figure of `n` axes side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.0 + 3.6 * n, height), layout="constrained")
    return figure, figure.subplots(1, n, squeeze=False)[0]


def _lines(axes: Any, data: "DataFrame", x: str, y: str, **options: Any) -> None:
    """The mean of each arm with its standard deviation; the legend once, below the figure."""
    import seaborn

    look = {"hue": "arm", "style": "arm", "palette": "colorblind", "markers": True, "dashes": False}
    seaborn.lineplot(data, x=x, y=y, errorbar="sd", ax=axes, **(look | options))
    handles, labels = axes.get_legend_handles_labels()
    axes.get_legend().remove()
    if not axes.figure.legends:
        place = {"loc": "outside lower center", "ncols": min(len(labels), 4)}
        axes.figure.legend(handles, labels, **place)
