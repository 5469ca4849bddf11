"""Decode speed and cache size over the context, one line for each kind of attention."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mla_lm.bench.decode import KINDS, build, curves
from mla_lm.cost import cache_elements_per_token

CONTEXTS = (256, 1024, 2048, 4096, 8192)
BATCHES = (1, 16)


def plot(path: Path) -> dict[str, dict[str, list[float]]]:
    """Measure, draw into `path`, and return what was drawn."""
    speeds = {f"batch {batch}": curves(CONTEXTS, batch) for batch in BATCHES}
    draw(path, speeds)
    return speeds


def draw(path: Path, speeds: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Panels of tokens a second, and one of the cache of a row in bfloat16."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "mla_lm"  # the same picture from the same numbers
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(speeds) + 1, figsize=(11, 3.4), layout="constrained")
    for panel, (name, lines) in zip(panels, speeds.items(), strict=False):
        for kind in KINDS:
            panel.plot(CONTEXTS, lines[kind], marker="o", markersize=3, label=kind)
        panel.set(title=f"decoding, {name}", ylabel="tokens/s", ylim=(0, None))
    for kind in KINDS:
        n_bytes = 2 * cache_elements_per_token(build(kind, "float32").cfg)
        sizes = [n_bytes * context / 2**20 for context in CONTEXTS]
        panels[-1].plot(CONTEXTS, sizes, marker="o", markersize=3, label=kind)
    panels[-1].set(title="cache of a row, bfloat16", ylabel="MiB", ylim=(0, None))
    for panel in panels:
        panel.set(xlabel="tokens of context", xlim=(0, None))
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
