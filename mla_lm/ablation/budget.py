"""Matched budgets: one free width of an arm, solved so that it costs what the reference arm costs.

The cost is a closed form of the configuration (`mla_lm.cost`); no model is built.
"""

from bisect import bisect_left, bisect_right
from typing import NamedTuple, TypeVar

from pydantic import BaseModel

from mla_lm.config import RunConfig
from mla_lm.config.compose import with_values
from mla_lm.config.section import value_at
from mla_lm.cost import cache_elements_per_token, count_parameters, train_flops_per_token
from mla_lm.errors import UserError

TOLERANCE = 0.01  # relative to the reference
WIDTHS = range(1, 2**20)
FREE = {
    "ffn": "model.inter_dim",
    "expert": "model.ffn.moe_inter_dim",
    "heads": "model.n_heads",
    "kv_heads": "model.attention.n_kv_heads",
    "head": "model.attention.head_dim",
    "rank": "model.attention.kv_lora_rank",
}
Config = TypeVar("Config", bound=BaseModel)


class Axes(NamedTuple):
    """What a run costs, its MTP modules included; they add nothing to the KV cache."""

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

    No key is set where the arm already matches, or for `none`. Of all widths that match, the one
    divisible by the highest power of two is taken. `free` is a name of FREE or a dotted key. Raises
    UserError for a `free` that is no width of the arm, and where no width matches.
    """
    if match == "none":
        return arm, {}
    target = getattr(axes(reference), match)
    if abs(getattr(axes(arm), match) / target - 1) <= TOLERANCE:
        return arm, {}
    keys = _keys(arm, free)

    def excess(width: int) -> float:  # rises with the width
        return float(getattr(axes(_unchecked(arm, keys, width)), match)) / target - 1

    first = bisect_left(WIDTHS, -TOLERANCE, key=excess)
    matching = WIDTHS[first : bisect_right(WIDTHS, TOLERANCE, key=excess)]
    nearest = min(WIDTHS[max(0, first - 1) : first + 1], key=lambda width: abs(excess(width)))
    reason = f"the closest is {keys[0]}={nearest} with {excess(nearest):+.2%}"
    if excess(1) == excess(2):
        reason = f"{keys[0]} does not change it"
    refusal = None
    for width in sorted(matching, key=lambda width: (-(width & -width), abs(excess(width)))):
        solved = dict.fromkeys(keys, width)
        try:
            return with_values(arm, solved), solved
        except UserError as error:
            refusal = refusal or error
    raise UserError(f"match={match}: the reference has {target:,}; {refusal or reason}")


def _keys(arm: RunConfig, free: str) -> list[str]:
    """The keys that take the free width; UserError where the arm has no such integer."""
    attention = arm.model.attention
    keys = [FREE.get(free, free)]
    if free == "heads" and attention.kind == "mha":
        keys.append("model.attention.n_kv_heads")
    if free == "head" and attention.kind == "mla":
        keys = ["model.attention.v_head_dim"]
    elif free == "head" and attention.rope_dim == value_at(arm, keys[0]):
        keys.append("model.attention.rope_head_dim")
    try:
        whole = all(type(value_at(arm, key)) is int for key in keys)
    except (AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        names = ", ".join(FREE)
        raise UserError(f"free={free}: must be one of {names}, or the key of an integer of the arm")
    return keys


def _unchecked(cfg: Config, keys: list[str], width: int) -> Config:
    """A copy with dotted keys set: not validated, so that the search is fast and has no gaps."""
    for key in keys:
        name, _, inner = key.partition(".")
        new = _unchecked(getattr(cfg, name), [inner], width) if inner else width
        cfg = cfg.model_copy(update={name: new})
    return cfg
