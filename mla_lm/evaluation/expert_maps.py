"""Heat maps of expert load relative to the mean of the layer: 1 is balance.

S steps, Q kinds of tokens, L MoE layers, E experts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

BALANCED, HIGHEST = 1.0, 2.0  # the middle and the end of the colour scale


def draw_over_training(
    path: Path, steps: Sequence[int], loads: Tensor, layers: Sequence[str]
) -> None:
    """loads (S, L, E), each column up to its step: one panel per layer, one row per expert."""
    n_experts = loads.shape[-1]
    extent = (0, steps[-1], n_experts - 0.5, -0.5)
    shares = relative(loads).permute(1, 2, 0)
    height = min(3.0, 0.12 * n_experts) + 0.7
    _draw(path, shares, layers, height=height, extent=extent, ylabel="expert", xlabel="step")


def draw_by_kind(path: Path, loads: Tensor, kinds: Sequence[str], layers: Sequence[str]) -> None:
    """loads (Q, L, E): one panel per layer, one row per kind of token."""
    ticks: dict[str, Any] = {"yticks": range(len(kinds)), "yticklabels": kinds}
    height = 0.2 * len(kinds) + 0.7
    _draw(path, relative(loads).transpose(0, 1), layers, height=height, xlabel="expert", **ticks)


def relative(loads: Tensor) -> Tensor:
    """Loads (S | Q, L, E) over the mean of their layer."""
    return loads / loads.float().mean(dim=-1, keepdim=True).clamp(min=1e-9)


def _draw(
    path: Path,
    images: Tensor,
    titles: Sequence[str],
    *,
    height: float,
    xlabel: str,
    extent: tuple[float, ...] | None = None,
    **axes: Any,
) -> None:
    """images (L, rows, columns), one below the other; `axes` are properties of each."""
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    norm = TwoSlopeNorm(BALANCED, vmin=0, vmax=HIGHEST)
    colours = {"norm": norm, "cmap": "RdBu_r", "aspect": "auto", "interpolation": "nearest"}
    figure = Figure(figsize=(7.0, len(titles) * height + 0.3), layout="constrained")
    panels = figure.subplots(len(titles), 1, squeeze=False)[:, 0]
    for panel, image, title in zip(panels, images.numpy(), titles, strict=True):
        shown = panel.imshow(image, extent=extent, **colours)
        panel.set(title=title, **axes)
    panels[-1].set(xlabel=xlabel)
    label = "load (1 = balanced)"
    figure.colorbar(shown, ax=panels, label=label, extend="max", shrink=0.8, aspect=40)
    figure.savefig(path, dpi=110)
