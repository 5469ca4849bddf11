"""The pictures: expert load relative to the mean of the layer, loss by position, pass keys found.

S steps, Q kinds of tokens, L MoE layers, E experts.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from mla_lm.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(figure: "Figure", path: Path, *, dpi: int = 110) -> None:
    """Write a picture, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


def draw_over_training(
    path: Path, steps: Sequence[int], loads: Tensor, layers: Sequence[str]
) -> None:
    """loads (S, L, E), each column up to its step: one panel per layer, one row per expert."""
    n_experts = loads.shape[-1]
    extent = (0, steps[-1], n_experts - 0.5, -0.5)
    shares = relative(loads).permute(1, 2, 0)
    height = min(3.0, 0.12 * n_experts) + 0.7
    _draw_loads(path, shares, layers, height, extent, xlabel="step", ylabel="expert")


def draw_by_kind(path: Path, loads: Tensor, kinds: Sequence[str], layers: Sequence[str]) -> None:
    """loads (Q, L, E): one panel per layer, one row per kind of token."""
    shares = relative(loads).transpose(0, 1)
    rows: dict[str, Any] = {"yticks": range(len(kinds)), "yticklabels": kinds}
    _draw_loads(path, shares, layers, 0.2 * len(kinds) + 0.7, xlabel="expert", **rows)


def relative(loads: Tensor) -> Tensor:
    """Loads (S | Q, L, E) over the mean of their layer: 1 is balance."""
    return loads / loads.float().mean(dim=-1, keepdim=True).clamp(min=1e-9)


def _draw_loads(
    path: Path,
    images: Tensor,
    titles: Sequence[str],
    height: float,
    extent: tuple[float, ...] | None = None,
    *,
    xlabel: str,
    **axes: Any,
) -> None:
    """images (L, rows, columns), one below the other; `axes` are properties of each."""
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    norm = TwoSlopeNorm(1.0, vmin=0, vmax=2)
    colours = {"norm": norm, "cmap": "RdBu_r", "aspect": "auto", "interpolation": "nearest"}
    figure = Figure(figsize=(7.0, len(titles) * height + 0.3), layout="constrained")
    panels = figure.subplots(len(titles), 1, squeeze=False)[:, 0]
    for panel, image, title in zip(panels, images.numpy(), titles, strict=True):
        shown = panel.imshow(image, extent=extent, **colours)
        panel.set(title=title, **axes)
    panels[-1].set(xlabel=xlabel)
    label = "load (1 = balanced)"
    figure.colorbar(shown, ax=panels, label=label, extend="max", shrink=0.8, aspect=40)
    save(figure, path)


def draw_by_position(path: Path, ranges: Sequence[tuple[int, int, float]]) -> None:
    """Loss at ranges of positions, on a logarithmic axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([last for _, last, _ in ranges], [loss for *_, loss in ranges], marker="o")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="position in the context, up to", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    save(figure, path)


def draw_passkeys(
    path: Path, found: Mapping[str, Mapping[int, Sequence[float]]], depths: Sequence[float]
) -> None:
    """Shares of keys found by title, length and depth: a panel per title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 2.6 * len(found), 3), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for panel, (title, by_length) in zip(panels, found.items(), strict=True):
        cells = np.array(list(by_length.values())).T  # (depths, lengths)
        image = panel.imshow(cells, vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(cells):
            colour = "black" if value > 0.6 else "white"
            panel.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
        panel.set(title=title, xlabel="tokens", xticks=range(len(by_length)))
        panel.set(xticklabels=by_length, yticks=range(len(depths)))
    panels[0].set(ylabel="text before the key", yticklabels=[f"{d:.0%}" for d in depths])
    figure.colorbar(image, ax=panels, label="right keys (chance 0.1)")
    save(figure, path)
