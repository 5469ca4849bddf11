"""Matched budgets: one free width of an arm, solved so that it costs what a reference arm costs.

The cost is a closed form of the configuration (`mla_lm.cost`); no model is built. Knows
nothing of what an arm learns, nor of how long it trains.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import groupby

from mla_lm.config import RunConfig
from mla_lm.config.compose import variants
from mla_lm.cost import cache_elements_per_token, count_parameters, train_flops_per_token
from mla_lm.errors import UserError

TOLERANCE = 0.01  # share of the reference's figure
LIMIT = 2**20  # widths are not tried beyond twice that
REACH = 32  # how far around a refused width an admissible one is looked for


def _params(cfg: RunConfig) -> float:
    counted = count_parameters(cfg.model)
    return counted.total + counted.mtp


def _active_params(cfg: RunConfig) -> float:
    counted = count_parameters(cfg.model)
    return counted.active + counted.mtp_active


AXES: dict[str, Callable[[RunConfig], float]] = {
    "params": _params,  # MTP modules included
    "active_params": _active_params,
    "train_flops": lambda cfg: train_flops_per_token(cfg.model, cfg.data.seq_len),  # per token
    "kv_bytes": lambda cfg: 2 * cache_elements_per_token(cfg.model),  # per token, in bfloat16
}
FREE = {
    "ffn": "model.inter_dim",
    "expert": "model.sizes.moe_inter_dim",
    "heads": "model.n_heads",
    "kv_heads": "model.sizes.n_kv_heads",
    "head": "model.sizes.head_dim",
    "rank": "model.sizes.kv_lora_rank",
}


def axes(cfg: RunConfig) -> dict[str, float]:
    """What a run costs on every axis."""
    return {name: axis(cfg) for name, axis in AXES.items()}


def solve(reference: RunConfig, words: Sequence[str], *, match: str, free: str) -> tuple[str, ...]:
    """The override to add to an arm's `words`, so that it is within 1 % of `reference` on `match`.

    Nothing is added where it is so already, or for `none`. Of all widths that will do it is the
    one divisible by the highest power of two; the axis must rise with it. `free` is a name of
    FREE or a dotted key. Raises UserError for an unknown axis or width, and where no width does.
    """
    if match == "none":
        return ()
    if match not in AXES:
        raise UserError(f"match={match}: must be one of none, {', '.join(AXES)}")
    axis, target = AXES[match], AXES[match](reference)
    vary = variants(words)
    arm = vary({})
    if abs(axis(arm) / target - 1) <= TOLERANCE:
        return ()
    key = FREE.get(free, free)
    figures = _Figures(lambda width: axis(vary({key: width})), start=_integer(arm, key))
    width = figures.roundest(target)
    if width is None:
        raise UserError(f"{match}: the reference has {target:,.0f}; {figures.best(key, target)}")
    return (f"{key}={width}",)


def _integer(arm: RunConfig, key: str) -> int:
    """The value of a dotted key, which must be an integer."""
    try:
        value: object = reduce(lambda node, part: dict(node)[part], key.split("."), arm)
    except (KeyError, TypeError, ValueError):
        value = None
    if type(value) is not int:
        names = ", ".join(FREE)
        raise UserError(f"free={key}: must be one of {names}, or the key of an integer of the arm")
    return value


class _Figures(dict[int, float]):
    """An axis by width, as far as looked at; NaN where the configuration refuses the width."""

    def __init__(self, figure: Callable[[int], float], *, start: int) -> None:
        self.figure, self.start = figure, start

    def __missing__(self, width: int) -> float:
        try:
            self[width] = self.figure(width)
        except UserError:
            self[width] = math.nan
        return self[width]

    def near(self, width: int) -> float:
        """Of the nearest admissible width: rises with `width` as the axis does."""
        for distance in range(REACH + 1):
            for neighbour in (width - distance, width + distance):
                if not math.isnan(self[neighbour]):
                    return self[neighbour]
        return -math.inf if width < self.start else math.inf

    def roundest(self, target: float) -> int | None:
        """The width within TOLERANCE that most powers of two divide; of several the closest."""
        lowest, highest = (1 - TOLERANCE) * target, (1 + TOLERANCE) * target
        top = max(1, self.start)
        while self.near(top) <= highest and top <= LIMIT:
            top *= 2
        low = bisect_left(range(top + 1), lowest, key=self.near)
        high = bisect_right(range(top + 1), highest, lo=low, key=self.near)

        def power(width: int) -> int:
            return width & -width

        for _, alike in groupby(sorted(range(low, high), key=power, reverse=True), key=power):
            if found := [w for w in alike if abs(self[w] / target - 1) <= TOLERANCE]:
                return min(found, key=lambda w: abs(self[w] - target))
        return None

    def best(self, key: str, target: float) -> str:
        """The nearest miss among the widths looked at, in words."""
        admissible = {w: figure for w, figure in self.items() if not math.isnan(figure)}
        width = min(admissible, key=lambda w: abs(admissible[w] - target))
        figure = admissible[width]
        found = f"{figure:,.0f} ({figure / target - 1:+.2%})"
        if len(admissible) > 1 and len({*admissible.values()}) == 1:
            return f"{key} does not move it from {found}"
        return f"{key}={width} comes closest with {found}"
