"""Matched budgets: one free width of an arm, solved so that it costs what the reference arm costs.

The cost is a closed form of the configuration (`mla_lm.cost`); no model is built.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel

from mla_lm.config import MLAConfig, RunConfig
from mla_lm.config.compose import with_values
from mla_lm.config.section import value_at
from mla_lm.cost import cache_elements_per_token, count_parameters, train_flops_per_token
from mla_lm.errors import UserError

TOLERANCE = 0.01  # relative to the reference
LIMIT = 2**20  # no width is tried above it
FREE = ("ffn", "expert", "heads", "kv_heads", "head", "rank")
Config = TypeVar("Config", bound=BaseModel)


class Axes(NamedTuple):
    """What a run costs, MTP modules included where they do."""

    params: int
    active_params: int
    train_flops: int  # per token
    kv_bytes: int  # per token, in bfloat16


def axes(cfg: RunConfig) -> Axes:
    """The four axes of a run."""
    counted = count_parameters(cfg.model)
    return Axes(
        params=counted.total + counted.mtp,
        active_params=counted.active + counted.mtp_active,
        train_flops=round(train_flops_per_token(cfg.model, cfg.data.seq_len)),
        kv_bytes=2 * cache_elements_per_token(cfg.model),
    )


def solve(
    reference: RunConfig, arm: RunConfig, *, match: str, free: str
) -> tuple[RunConfig, dict[str, int]]:
    """The arm within 1 % of `reference` on the axis `match`, and the keys that were set for it.

    None are set where it is so already, or for `none`. Of all widths that match it is the one
    divisible by the highest power of two. `free` is a name of FREE or a dotted key. Raises
    UserError for a `free` that is no width of the arm, and where no width matches.
    """
    if match == "none":
        return arm, {}
    target = getattr(axes(reference), match)
    if abs(getattr(axes(arm), match) / target - 1) <= TOLERANCE:
        return arm, {}
    keys = _keys(arm, free)

    def figure(width: int) -> float:
        return float(getattr(axes(_unchecked(arm, dict.fromkeys(keys, width))), match)) / target

    widths = _matching(figure)
    refusal = None
    for width in sorted(widths, key=lambda width: (-(width & -width), abs(figure(width) - 1))):
        solved = dict.fromkeys(keys, width)
        try:
            return with_values(arm, solved), solved
        except UserError as error:
            refusal = refusal or error
    nearest = min({max(1, widths.start - 1), widths.start}, key=lambda w: abs(figure(w) - 1))
    reason = refusal or f"the closest is {keys[0]}={nearest} with {figure(nearest) - 1:+.2%}"
    if figure(1) == figure(2):
        reason = f"{keys[0]} does not change it"
    raise UserError(f"match={match}: the reference has {target:,}; {reason}")


def _matching(figure: Callable[[int], float]) -> range:
    """The widths whose figure, which rises with them, is 1 within TOLERANCE."""
    top = 1
    while top < LIMIT and figure(top) <= 1 + TOLERANCE:
        top *= 2
    low = bisect_left(range(1, top + 1), 1 - TOLERANCE, key=figure) + 1
    high = bisect_right(range(1, top + 1), 1 + TOLERANCE, key=figure) + 1
    return range(low, high)


def _keys(arm: RunConfig, free: str) -> list[str]:
    """The keys that take the free width; UserError where the arm has no such integer."""
    attention = arm.model.attention
    keys = {
        "ffn": ["model.inter_dim"],
        "expert": ["model.ffn.moe_inter_dim"],
        "heads": ["model.n_heads"],
        "kv_heads": ["model.attention.n_kv_heads"],
        "head": ["model.attention.head_dim"],
        "rank": ["model.attention.kv_lora_rank"],
    }.get(free, [free])
    if free == "heads" and attention.kind == "mha":
        keys.append("model.attention.n_kv_heads")
    if free == "head" and isinstance(attention, MLAConfig):
        keys = ["model.attention.v_head_dim"]
    elif free == "head" and attention.rope_dim == value_at(arm, keys[0]):
        keys.append("model.attention.rope_head_dim")
    try:
        values: list[Any] = [value_at(arm, key) for key in keys]
    except (AttributeError, KeyError, TypeError):
        values = [None]
    if any(type(value) is not int for value in values):
        names = ", ".join(FREE)
        raise UserError(f"free={free}: must be one of {names}, or the key of an integer of the arm")
    return keys


def _unchecked(cfg: Config, values: dict[str, int]) -> Config:
    """A copy with dotted keys set: not validated, so that the search is fast and has no gaps."""
    for key, value in values.items():
        name, _, inner = key.partition(".")
        new = _unchecked(getattr(cfg, name), {inner: value}) if inner else value
        cfg = cfg.model_copy(update={name: new})
    return cfg
