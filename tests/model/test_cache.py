"""Decoding through a cache gives what the model gives without one."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from mla_lm.errors import UserError
from mla_lm.model import Transformer
from mla_lm.model import attention as attention_module
from mla_lm.model.attention import attend
from mla_lm.model.cache import Cache
from mla_lm.model.positions import Positions
from tests.conftest import ATTENTION, random_tokens, randomized, tiny_config

CONTEXT = 16
SMALL = ("model.n_layers=2", "model.mtp_depth=2", f"data.seq_len={CONTEXT}")
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
YARN = ("model/rope=yarn", "model.rope.original_max_seq_len=8", "model.rope.theta=100.0")
KINDS = {
    **ATTENTION,
    "mla with yarn": ("model/attention=mla", *YARN),
    "normed, partly rotated gqa": (
        "model/attention=gqa",
        "model.attention.rope_head_dim=6",
        "model.attention.qk_norm=true",
    ),
}
BOTH_WAYS = ("model.attention.qk_nope_head_dim=3", "model.attention.v_head_dim=5")
PATHS = [pytest.param(KINDS[name], None, id=name) for name in KINDS if "mla" not in name]
for name in ("mla", "mla with q compression", "mla with yarn"):
    # with heads this narrow up to 4 new tokens are absorbed and more are not
    PATHS.append(pytest.param((*KINDS[name], *BOTH_WAYS), None, id=f"{name}, both ways"))
    PATHS += [pytest.param(KINDS[name], way, id=f"{name}, absorb={way}") for way in (True, False)]
each_path = pytest.mark.parametrize(("overrides", "absorb"), PATHS)


@cache
def build(*overrides: str) -> Transformer:
    cfg = tiny_config(*SMALL, *overrides).model
    return randomized(Transformer(cfg)).eval()


class Decoding:
    """A cache and, beside it, the tokens that each of its rows should hold."""

    def __init__(
        self, model: Transformer, batch: int, *, capacity: int = CONTEXT, absorb: bool | None = None
    ) -> None:
        self.model = model
        self.rows = [torch.zeros(0, dtype=torch.int64)] * batch
        self.cache = model.new_cache(batch, capacity, absorb=absorb)

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.rows]

    @torch.no_grad()
    def feed(self, n_new: int) -> None:
        """Give every row random tokens; each is to read as in an uncached run of its row alone."""
        new = random_tokens(self.model.cfg, len(self.rows), n_new)
        self.rows = [torch.cat(pair) for pair in zip(self.rows, new, strict=True)]
        out = self.model(new, cache=self.cache)
        assert out.logits.shape[:2] == new.shape
        for index, row in enumerate(self.rows):
            alone = self.model(row[None], mtp=False)
            torch.testing.assert_close(out.logits[index], alone.logits[0, -n_new:], **CLOSE)
            torch.testing.assert_close(out.mtp_input[index], alone.mtp_input[0, -n_new:], **CLOSE)
        assert self.cache.lengths == self.lengths

    def truncate(self, *lengths: int) -> None:
        self.rows = [row[:length] for row, length in zip(self.rows, lengths, strict=True)]
        self.cache.truncate(lengths)

    def reorder(self, *rows: int) -> None:
        self.rows = [self.rows[row] for row in rows]
        self.cache.reorder(rows)


def decode_all_ways(model: Transformer, absorb: bool | None) -> None:
    """Ragged chunks, cuts of some rows, one row to nothing, rows swapped, repeated, dropped."""
    decoding = Decoding(model, 3, absorb=absorb)
    decoding.feed(5)
    decoding.feed(3)
    decoding.truncate(8, 2, 4)
    decoding.feed(3)
    decoding.feed(1)
    decoding.truncate(7, 6, 0)
    decoding.feed(2)
    decoding.reorder(2, 0, 1)
    decoding.feed(1)
    decoding.reorder(1, 1, 0, 2, 1)
    decoding.feed(4)
    decoding.truncate(*(length - step for step, length in enumerate(decoding.lengths)))
    decoding.reorder(3, 1)
    decoding.feed(2)
    decoding.reorder(1)
    decoding.feed(1)
    assert decoding.lengths == [CONTEXT]
    decoding.reorder()
    assert (decoding.cache.lengths, decoding.cache.n_bytes) == ([], 0)


@each_path
def test_cut_and_reordered_rows_go_on_as_if_alone(
    overrides: tuple[str, ...], absorb: bool | None
) -> None:
    decode_all_ways(build(*overrides), absorb)


def late(slots: slice | Tensor) -> slice | Tensor:
    return slice(slots.start + 1, slots.stop + 1) if isinstance(slots, slice) else slots + 1


def wider(mask: Tensor) -> Tensor:
    return mask | torch.cat((mask[..., :1], mask[..., :-1]), dim=-1)


Change = Callable[[Positions, Tensor, Tensor], Positions]
MISPLACED: dict[str, Change] = {
    "one slot late": lambda at, *_: at._replace(slots=late(at.slots)),
    "sees one token too many": lambda at, *_: (
        at if at.mask is None else at._replace(mask=wider(at.mask))
    ),
    "sees what the longest row may": lambda at, *_: (
        at if at.mask is None else at._replace(mask=at.mask.amax(0, keepdim=True))
    ),
    "every chunk at position 0": lambda at, cos, sin: at._replace(
        cos=cos[: at.cos.shape[-2]], sin=sin[: at.cos.shape[-2]]
    ),
    "every row where the first is": lambda at, *_: (
        at if at.cos.ndim == 2 else at._replace(cos=at.cos[:1], sin=at.sin[:1])
    ),
}


def misplaced(change: Change) -> dict[str, Callable[..., Any]]:
    honest = Cache.reserve
    return {"reserve": lambda self, n, cos, sin: change(honest(self, n, cos, sin), cos, sin)}


def reorder_lengths_only(self: Cache, rows: Sequence[int]) -> None:
    self.lengths = [self.lengths[row] for row in rows]
    for layer in self.layers:
        layer.tensors = tuple(t[: len(rows)].expand(len(rows), *t.shape[1:]) for t in layer.tensors)


FAULTS = {name: misplaced(change) for name, change in MISPLACED.items()} | {
    "keeps the old lengths": {"truncate": lambda self, lengths: None},
    "reorders the lengths only": {"reorder": reorder_lengths_only},
}
FAULTY = [("mla", True), ("mla", False), ("gqa", None)]


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize(("name", "absorb"), FAULTY)
def test_a_fault_of_the_cache_is_found(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    absorb: bool | None,
    fault: dict[str, Callable[..., Any]],
) -> None:
    model = build(*KINDS[name])
    for method, wrong in fault.items():
        monkeypatch.setattr(Cache, method, wrong)
    with pytest.raises(AssertionError, match="not close"):
        decode_all_ways(model, absorb)


def test_scores_scaled_by_the_width_of_the_latent_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(q: Tensor, *rest: Tensor, scale: float) -> Tensor:
        return attend(q, *rest, scale=q.shape[-1] ** -0.5)

    monkeypatch.setattr(attention_module, "attend", wrong)
    model = build(*KINDS["mla"])
    decode_all_ways(model, absorb=False)  # heads of keys have the width meant
    with pytest.raises(AssertionError, match="not close"):
        decode_all_ways(model, absorb=True)


@pytest.mark.parametrize("lengths", [(5, 3), (4, -1), (4,), (4, 3, 2)])
def test_a_cut_that_does_not_fit_is_refused(lengths: tuple[int, ...]) -> None:
    decoding = Decoding(build(), 2)
    decoding.feed(4)
    decoding.truncate(4, 3)
    with pytest.raises(ValueError):  # noqa: PT011
        decoding.cache.truncate(lengths)
    decoding.feed(2)


@pytest.mark.parametrize(
    ("capacity", "limit", "name"),
    [(CONTEXT + 3, CONTEXT, "model.max_seq_len=16"), (9, 9, "the cache's capacity=9")],
)
@pytest.mark.parametrize("ragged", [False, True])
def test_what_does_not_fit_is_refused_and_leaves_the_cache_alone(
    capacity: int, limit: int, name: str, ragged: bool
) -> None:
    decoding = Decoding(build(), 2, capacity=capacity)
    decoding.feed(limit - 1)
    decoding.truncate(limit - 1, limit - 1 - 4 * ragged)
    for n_new in (2, 5):
        with pytest.raises(UserError) as caught:
            decoding.model(random_tokens(decoding.model.cfg, 2, n_new), cache=decoding.cache)
        assert str(caught.value) == f"{limit - 1 + n_new} tokens exceed {name}"
    decoding.feed(1)
    decoding.truncate(1, 2)
    decoding.feed(limit - 2)
