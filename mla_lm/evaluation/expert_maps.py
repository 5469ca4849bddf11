"""Heat maps of expert load: over a training, and over kinds of tokens. 1 is balance.

S columns of steps, Q kinds of tokens, L MoE layers, E experts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

BALANCED, HIGHEST = 1.0, 2.0  # the middle and the end of the colours


def draw_over_training(
    path: Path, steps: Sequence[int], loads: Tensor, layers: Sequence[str]
) -> None:
    """loads (S, L, E), each column up to its step: one panel a layer, one row an expert."""
    figure, panels = _panels(len(layers), width=7.0, height=min(3.0, 0.12 * loads.shape[-1]) + 0.7)
    for panel, layer, share in zip(panels, layers, _relative(loads), strict=True):
        extent = (0, steps[-1], loads.shape[-1] - 0.5, -0.5)
        image = panel.imshow(share.T, extent=extent, **_colours())
        panel.set(title=layer, ylabel="expert")
    panels[-1].set(xlabel="step")
    _save(figure, image, panels, path)


def draw_by_kind(path: Path, loads: Tensor, kinds: Sequence[str], layers: Sequence[str]) -> None:
    """loads (Q, L, E): one panel a layer, one row a kind of token."""
    figure, panels = _panels(len(layers), width=7.0, height=0.2 * len(kinds) + 0.7)
    for panel, layer, share in zip(panels, layers, _relative(loads), strict=True):
        image = panel.imshow(share, **_colours())
        panel.set(title=layer, yticks=range(len(kinds)), yticklabels=kinds)
    panels[-1].set(xlabel="expert")
    _save(figure, image, panels, path)


def _relative(loads: Tensor) -> list[Any]:
    """Each load (S | Q, L, E) over the mean of its experts: an array (S | Q, E) a layer."""
    shares = loads / loads.float().mean(dim=-1, keepdim=True).clamp(min=1e-9)
    return [share.numpy() for share in shares.unbind(1)]


def _colours() -> dict[str, Any]:
    from matplotlib.colors import TwoSlopeNorm

    norm = TwoSlopeNorm(BALANCED, vmin=0, vmax=HIGHEST)
    return {"norm": norm, "cmap": "RdBu_r", "aspect": "auto", "interpolation": "nearest"}


def _panels(n: int, *, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, n * height + 0.3), layout="constrained")
    return figure, figure.subplots(n, 1, squeeze=False)[:, 0]


def _save(figure: Any, image: Any, panels: Any, path: Path) -> None:
    label = "load (1 = balanced)"
    figure.colorbar(image, ax=panels, label=label, extend="max", shrink=0.8, aspect=40)
    figure.savefig(path, dpi=110)
