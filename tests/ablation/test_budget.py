"""Solved arms cost what their reference costs, by the closed forms and by counted tensors."""

import re

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mla_lm import Transformer, load_config
from mla_lm.ablation.budget import FREE, TOLERANCE, Axes, axes, solve
from mla_lm.config import RunConfig
from mla_lm.config.compose import with_values
from mla_lm.errors import UserError
from tests.ablation.folders import GQA
from tests.conftest import tiny_config
from tests.test_cost import counted_parameters

ARMS = {
    "mha": ("model/attention=mha",),
    "gqa": (GQA,),
    "mqa": ("model/attention=mqa",),
    "mla of another rank": ("model.attention.kv_lora_rank=24",),
    "dense": ("model/ffn=dense", "balance=none"),
    "gqa rotated in part": (GQA, "model.attention.rope_head_dim=4"),
    "gqa with QK-norm": (GQA, "model.attention.qk_norm=true"),
}

DEEP = ["model=nano", "model.n_layers=4", "model.n_dense_layers=2"]


def within(cfg: RunConfig, reference: RunConfig, axis: str) -> bool:
    return abs(getattr(axes(cfg), axis) / getattr(axes(reference), axis) - 1) <= TOLERANCE


@pytest.mark.parametrize("name", ARMS)
@settings(max_examples=4, deadline=None, phases=[Phase.generate])
@given(data=st.data())
def test_arms_are_matched(name: str, data: st.DataObject) -> None:
    def width(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    shared = {
        "data.seq_len": width(64, 128),
        "model.vocab_size": width(512, 3000),
        "model.dim": width(24, 400),
        "model.inter_dim": width(600, 2000),
        "model.mtp_depth": width(0, 2),
    }
    n_elements = 2 * 3 * 2 * width(4, 20)  # of the cache: heads of an even width can match it
    rank = {"model.attention.kv_lora_rank": n_elements - 8}
    reference = with_values(load_config(DEEP), shared | rank)
    ffn = "ffn" if name == "dense" else data.draw(st.sampled_from(["ffn", "expert"]))
    arm = load_config([*DEEP, *ARMS[name]])
    start = with_values(arm, shared | {FREE[ffn]: width(1, 1000)})
    of_cache = "rank" if arm.model.attention.kind == "mla" else "head"
    for axis in Axes._fields:
        free = of_cache if axis == "kv_bytes" else ffn
        solved, keys = solve(reference, start, match=axis, free=free)
        assert within(solved, reference, axis), keys
        assert bool(keys) == (not within(start, reference, axis))
        assert with_values(start, keys) == solved


def test_formulae_equal_counted_parameters_on_solved_arms() -> None:
    for overrides in ARMS.values():
        arm = tiny_config(*overrides)
        cfg, keys = solve(tiny_config("model.inter_dim=100"), arm, match="params", free="ffn")
        assert keys
        with torch.device("meta"):
            total, active, mtp, mtp_active = counted_parameters(Transformer(cfg.model))
        assert axes(cfg)[:2] == (total + mtp, active + mtp_active)


HEADS = {"model.attention.n_kv_heads": 3, "model.n_heads": 3}


@pytest.mark.parametrize(
    ("free", "kind", "keys", "near", "start"),
    [
        ("ffn", "mha", ["model.inter_dim"], 75, {"model.inter_dim": 300}),
        ("heads", "gqa", ["model.n_heads"], 45, HEADS),  # multiples of 3
        ("heads", "mha", ["model.n_heads", "model.attention.n_kv_heads"], 45, {}),
        ("head", "gqa", ["model.attention.head_dim", "model.attention.rope_head_dim"], 98, {}),
        ("head", "mla", ["model.attention.v_head_dim"], 31, {}),
        ("kv_heads", "gqa", ["model.attention.n_kv_heads"], 30, {"model.n_heads": 60}),  # divisors
        ("rank", "mla", ["model.attention.kv_lora_rank"], 75, {}),
        ("model.attention.qk_nope_head_dim", "mla", ["model.attention.qk_nope_head_dim"], 19, {}),
    ],
)
def test_the_roundest_width_that_matches_is_taken(
    free: str, kind: str, keys: list[str], near: int, start: dict[str, int]
) -> None:
    arm = with_values(tiny_config(f"model/attention={kind}", "model.vocab_size=1000"), start)
    reference = with_values(arm, dict.fromkeys(keys, near))
    matching = {}
    for width in range(near // 2, 2 * near):
        try:
            cfg = with_values(arm, dict.fromkeys(keys, width))
        except UserError:
            continue
        if within(cfg, reference, "params"):
            matching[width] = abs(axes(cfg).params - axes(reference).params)
    best = max(matching, key=lambda width: (width & -width, -matching[width]))
    assert solve(reference, arm, match="params", free=free)[1] == dict.fromkeys(keys, best)


def test_nothing_is_set_where_nothing_is_needed() -> None:
    close, far = tiny_config("model.inter_dim=45"), tiny_config("model.inter_dim=450")
    for axis in Axes._fields:
        assert solve(tiny_config(), close, match=axis, free="ffn") == (close, {})
    assert solve(tiny_config(), far, match="none", free="ffn") == (far, {})


NO_WIDTH = "must be one of ffn, expert, heads, kv_heads, head, rank, or the key of an integer"


@pytest.mark.parametrize(
    ("arm", "match", "free", "message"),
    [
        ("model.inter_dim=450", "params", "width", f"free=width: {NO_WIDTH}"),
        ("model.inter_dim=450", "params", "model.tie_embeddings", NO_WIDTH),
        ("model.inter_dim=450", "params", "run_dir.x", NO_WIDTH),
        (GQA, "kv_bytes", "rank", NO_WIDTH),
        (GQA, "kv_bytes", "ffn", "has 156; model.inter_dim does not change it"),
        (GQA, "kv_bytes", "head", "model.attention.head_dim=6 with -7.69%"),
        ("model/attention=mha", "kv_bytes", "model.attention.n_kv_heads", "has 156; the closest"),
    ],
)
def test_what_cannot_be_matched_is_refused(arm: str, match: str, free: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        solve(tiny_config(), tiny_config(arm), match=match, free=free)
