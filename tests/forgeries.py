"""Forgeries of plain trees (dicts, lists, tuples, JSON values): one place changed at a time.

By type, by size and by depth; from the same `rng` always the same ones. Leaves of other types, such
as tensors, are replaced like any other. Knows nothing of what the trees mean.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from itertools import pairwise
from operator import getitem
from random import Random
from typing import Any

Changes = Iterable[tuple[str, Any]]  # what is changed, and into what
Leaf = Callable[[Any], Changes]
Place = tuple[Any, ...]  # the keys and indices that lead to it
STOP = 0.15  # share of containers that are changed themselves, not in what they hold
DEPTHS = (100, 500)  # of lists in lists; an encoder of Python ends at about 900
STRANGERS: dict[str, Any] = {
    "null": None,
    "true": True,
    "false": False,
    "zero": 0,
    "minus one": -1,
    "a million": 10**6,
    "a billion": 10**9,
    "2**31": 2**31,
    "2**63 - 1": 2**63 - 1,
    "2**64": 2**64,
    "2**70": 2**70,
    "a tenth": 0.1,
    "1e300": 1e300,
    "1e-300": 1e-300,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "no text": "",
    "a path": "../../forged",
    "an absolute path": "/dev/zero",
    "an interpolation": "${oc.env:HOME}",
    "control characters": "a\0b\n\x1b[31mc\u202e",
    "half a character": "\ud800",
    "a long text": "x" * 1_000_000,
    "no list": [],
    "no mapping": {},
    "a list": [1, "a", None],
    "a mapping": {"a": 1},
    "a long list": [0] * 100_000,
}


def none(value: Any) -> Changes:
    """No more changes of a leaf."""
    return ()


def mutations(tree: Any, rng: Random, *, leaf: Leaf = none) -> Iterator[tuple[str, Any]]:
    """Endlessly: (what is changed, `tree` with that change); `tree` itself stays as it is.

    `leaf` has more changes of a value, such as those of a tensor.
    """
    while True:
        place = _place(tree, rng)
        before = reduce(getitem, place, tree)
        what, value = rng.choice([*_changes(before, tree, rng), *leaf(before)])
        yield f"{'.'.join(map(str, place)) or 'all'}: {what}", _with(tree, place, value)


def _place(tree: Any, rng: Random) -> Place:
    """From the root down, so that a list of 600 numbers is not chosen 600 times as often."""
    place: Place = ()
    while isinstance(tree, dict | list | tuple) and tree and (not place or rng.random() > STOP):
        key = rng.choice([*tree] if isinstance(tree, dict) else range(len(tree)))
        place, tree = (*place, key), tree[key]
    return place


def _with(tree: Any, place: Place, value: Any) -> Any:
    """`tree` with another value at `place`; only what leads there is copied."""
    if not place:
        return value
    key, *below = place
    changed = _with(tree[key], tuple(below), value)
    if isinstance(tree, dict):
        return {**tree, key: changed}
    return type(tree)([*tree[:key], changed, *tree[key + 1 :]])


def _changes(value: Any, tree: Any, rng: Random) -> Iterator[tuple[str, Any]]:
    """Other values for one place: strangers, its own value bent, that of another place."""
    for _ in range(3):  # more often than any single change of the value itself
        name, stranger = rng.choice([*STRANGERS.items()])
        yield name, stranger
    depth = rng.choice(DEPTHS)
    yield f"{depth} lists in lists", reduce(lambda inner, _: [inner], range(depth), [])
    if other := _place(tree, rng):
        yield f"that of {'.'.join(map(str, other))}", reduce(getitem, other, tree)
    yield "in a list", [value]
    if isinstance(value, bool):
        yield "the opposite", not value
    elif isinstance(value, int | float):
        yield from _numbers(value, rng)
    elif isinstance(value, str):
        yield "another word", f"{value}x"
        yield "cut short", value[: len(value) // 2]
        yield "twice", value * 2
    elif isinstance(value, dict) and value:
        yield from _mappings(value, rng)
    elif isinstance(value, list | tuple) and value:
        yield "without the last", value[:-1]
        yield "the last twice", type(value)([*value, value[-1]])
        yield "reversed", value[::-1]
        yield "a mapping of it", dict(enumerate(value[:10]))


def _numbers(value: float, rng: Random) -> Iterator[tuple[str, Any]]:
    yield "plus one", value + 1
    yield "minus one more", value - 1
    yield "negative", -value
    yield "times a power of ten", value * 10 ** rng.randrange(1, 12)
    yield "as text", str(value)
    if isinstance(value, int) or math.isfinite(value):
        yield "as the other kind of number", float(value) if isinstance(value, int) else int(value)


def _mappings(value: dict[Any, Any], rng: Random) -> Iterator[tuple[str, Any]]:
    key = rng.choice([*value])
    rest = {name: of_name for name, of_name in value.items() if name != key}
    yield f"without {key}", rest
    yield f"{key} renamed", {**rest, f"{key}_": value[key]}
    yield "one key more", {**value, "forged": value[key]}
    yield "a list of its values", [*value.values()]
    for one, other in pairwise([*value][:2]):
        yield f"{one} and {other} swapped", {**value, one: value[other], other: value[one]}
