"""Solved arms cost what their reference costs, by the closed forms and by counted tensors."""

import random
import re
from collections.abc import Callable, Mapping
from functools import cache

import pytest
import torch

from mla_lm import Transformer, load_config
from mla_lm.ablation import budget
from mla_lm.ablation.budget import AXES, FREE, TOLERANCE, axes, solve
from mla_lm.config import RunConfig
from mla_lm.config.compose import variants
from mla_lm.cost import count_parameters
from mla_lm.errors import UserError
from tests.conftest import TINY, tiny_config
from tests.test_cost import counted_parameters

NANO = ("model=nano",)
GQA = "model/attention=gqa"
ARMS = {
    "mha": ("model/attention=mha",),
    "gqa": (GQA,),
    "mqa": ("model/attention=mqa",),
    "mla of another rank": ("model.sizes.kv_lora_rank=24",),
    "dense": ("model/ffn=dense", "balance=none"),
    "gqa with the heads of MLA": (GQA, "model.sizes.head_dim=16"),
    "gqa rotated in part": (GQA, "model.attention.rope_head_dim=4"),
    "gqa with QK-norm": (GQA, "model.attention.qk_norm=true"),
}
# Divisors of 45, all equally round: 5 and 9 cost almost the same beside the embedding.
ODD_HEADS = (GQA, "model.n_heads=45", "model.sizes.n_kv_heads=45", "model.vocab_size=20000")
each_arm = pytest.mark.parametrize("arm", ARMS.values(), ids=ARMS)


def random_widths(rng: random.Random) -> dict[str, int]:
    """An MLA whose cache other attention kinds can match: rank + rope = 2 n_heads even."""
    n_layers, n_heads, rope = rng.randint(2, 6), rng.choice([2, 4, 6, 12]), rng.choice([4, 6, 8])
    kv_heads = [n for n in range(1, n_heads) if n_heads % n == 0]
    nope, experts = 16 - rope, rng.randint(2, 16)
    q_rank = rng.choice([{}, {"model.sizes.q_lora_rank": 18}])
    return q_rank | {
        "data.seq_len": rng.choice([64, 256, 1024]),
        "model.vocab_size": rng.randint(257, 3000),
        "model.dim": rng.randint(24, 400),
        "model.n_layers": n_layers,
        "model.n_heads": n_heads,
        "model.n_dense_layers": rng.randint((n_layers + 1) // 2, n_layers - 1),
        "model.inter_dim": rng.randint(600, 2000),
        "model.mtp_depth": rng.randint(0, 2),
        "model.tie_embeddings": rng.random() < 0.5,
        "model.sizes.head_dim": 2 * rng.randint(4, 16),
        "model.sizes.nope_head_dim": nope,
        "model.sizes.rope_head_dim": rope,
        "model.sizes.n_kv_heads": rng.choice(kv_heads),
        "model.sizes.kv_lora_rank": 2 * n_heads * 2 * rng.randint(4, 20) - rope,
        "model.sizes.moe_inter_dim": rng.randint(100, 500),
        "model.sizes.n_routed_experts": experts,
        "model.sizes.n_activated_experts": rng.randint(1, experts),
    }


def within(cfg: RunConfig, reference: RunConfig, axis: str) -> bool:
    return abs(AXES[axis](cfg) / AXES[axis](reference) - 1) <= TOLERANCE


def changes(solved: tuple[str, ...]) -> dict[str, int]:
    return {key: int(value) for key, _, value in (word.partition("=") for word in solved)}


@cache
def variants_once(words: tuple[str, ...]) -> Callable[[Mapping[str, int]], RunConfig]:
    """Makes each configuration of an arm once for all axes."""
    vary = variants(words)
    vary_once = cache(lambda changed: vary(dict(changed)))
    return lambda changed: vary_once(tuple(changed.items()))


@pytest.mark.parametrize("seed", range(50))
def test_arms_are_matched(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "variants", variants_once)
    rng = random.Random(seed)
    widths, arm = random_widths(rng), list(ARMS)[seed % len(ARMS)]
    ffn = "ffn" if arm == "dense" else rng.choice(["ffn", "expert"])
    cache_width = "rank" if "mla" in arm else "head"
    reference = variants_once(NANO)(widths)
    base = (*NANO, *(f"{key}={value}" for key, value in widths.items()))
    words = (*base, *ARMS[arm], f"{FREE[ffn]}={rng.randint(1, 1000)}")
    arm_of = variants_once(words)
    for axis in AXES:
        free = cache_width if axis == "kv_bytes" else ffn
        solved = solve(reference, words, match=axis, free=free)
        assert within(arm_of(changes(solved)), reference, axis), (axis, solved)
        assert len(solved) == 1 - within(arm_of({}), reference, axis)


@each_arm
def test_formulae_equal_counted_parameters_on_solved_arms(arm: tuple[str, ...]) -> None:
    words = (*TINY, *arm)
    solved = solve(tiny_config("model.inter_dim=100"), words, match="params", free="ffn")
    cfg = load_config([*words, *solved])
    with torch.device("meta"):
        model = Transformer(cfg.model)
    assert solved
    total, active, mtp, mtp_active = counted = counted_parameters(model)
    assert count_parameters(cfg.model) == counted
    assert axes(cfg)["params"] == total + mtp
    assert axes(cfg)["active_params"] == active + mtp_active


def test_a_solved_arm_loads_as_the_solver_saw_it() -> None:
    words = (*TINY, GQA, "run_dir=x", "run_id=y", "model.inter_dim=7")
    solved = solve(tiny_config(), words, match="train_flops", free="ffn")
    assert solved
    assert load_config([*words, *solved]) == variants(words)(changes(solved))


def admissible(words: tuple[str, ...], key: str, tried: range) -> dict[int, RunConfig]:
    """The configurations by width, without the widths that are refused."""
    vary, found = variants(words), {}
    for width in tried:
        try:
            found[width] = vary({key: width})
        except UserError:
            continue
    return found


@pytest.mark.parametrize(
    ("free", "width", "arm"),
    [
        ("ffn", 75, ("model/attention=mha", "model.inter_dim=300")),
        ("heads", 45, (GQA, "model.n_heads=3", "model.sizes.n_kv_heads=3")),  # multiples of 3
        ("head", 98, (GQA, "model.sizes.head_dim=20")),  # even
        ("head", 98, (GQA, "model.sizes.head_dim=120", "model.attention.rope_head_dim=96")),
        ("kv_heads", 30, (GQA, "model.n_heads=60", "model.sizes.n_kv_heads=60")),  # divisors of 60
        ("kv_heads", 9, ODD_HEADS),
        ("rank", 75, ("model.sizes.kv_lora_rank=9",)),
    ],
)
def test_round_widths_are_preferred(free: str, width: int, arm: tuple[str, ...]) -> None:
    words, key = (*TINY, "model.vocab_size=1000", *arm), FREE[free]
    widths = admissible(words, key, range(width // 2, 2 * width))
    reference = widths[width]
    target = axes(reference)["params"]
    matched = [w for w in widths if within(widths[w], reference, "params")]
    best = max(matched, key=lambda w: (w & -w, -abs(axes(widths[w])["params"] - target)))
    assert solve(reference, words, match="params", free=free) == (f"{key}={best}",)


def test_a_rounder_width_beats_a_closer_one() -> None:
    words = (*TINY, GQA, "model.inter_dim=7")
    reference = tiny_config(GQA, "model.inter_dim=63")
    assert solve(reference, words, match="params", free="ffn") == ("model.inter_dim=64",)


def test_nothing_is_added_where_nothing_is_needed() -> None:
    reference = tiny_config()
    for axis in AXES:
        assert solve(reference, (*TINY, "model.inter_dim=45"), match=axis, free="ffn") == ()
    assert solve(reference, (*TINY, "model.inter_dim=450"), match="none", free="ffn") == ()


def test_a_dotted_key_is_a_width_too() -> None:
    words = (*TINY, GQA, "model.attention.head_dim=40", "model.attention.rope_head_dim=4")
    solved = solve(tiny_config(GQA), words, match="kv_bytes", free="model.attention.head_dim")
    assert solved == ("model.attention.head_dim=14",)


REFUSALS = {
    "axis": (
        ("model.inter_dim=7", "flops", "ffn"),
        "match=flops: must be one of none, params, active_params, train_flops, kv_bytes",
    ),
    **{
        free: (
            ("model.inter_dim=450", "params", free),
            f"free={free}: must be one of ffn, expert, heads, kv_heads, head, rank, "
            "or the key of an integer of the arm",
        )
        for free in ("width", "model.width", "model.attention", "model.tie_embeddings", "run_dir.x")
    },
    "does not move": (
        (GQA, "kv_bytes", "ffn"),
        "kv_bytes: the reference has 156; model.inter_dim does not move it from 336 (+115.38%)",
    ),
    "from below": (
        ("model.sizes.kv_lora_rank=6", "kv_bytes", "heads"),
        "kv_bytes: the reference has 156; model.n_heads does not move it from 72 (-53.85%)",
    ),
    "too coarse": (
        (GQA, "kv_bytes", "head"),
        "kv_bytes: the reference has 156; model.sizes.head_dim=6 comes closest with 144 (-7.69%)",
    ),
    "one width only": (
        ("model/attention=mha", "kv_bytes", "model.attention.n_kv_heads"),
        "kv_bytes: the reference has 156; "
        "model.attention.n_kv_heads=4 comes closest with 672 (+330.77%)",
    ),
}


@pytest.mark.parametrize(("asked", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_matched_is_refused(asked: tuple[str, str, str], message: str) -> None:
    arm, match, free = asked
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        solve(tiny_config(), (*TINY, arm), match=match, free=free)


@pytest.mark.parametrize("word", ["model=null", "model/attention=flash", "model.dims=3"])
def test_an_arm_that_does_not_compose_is_refused_as_a_run_is(word: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config([*TINY, word])
    with pytest.raises(UserError, match=f"^{re.escape(str(refused.value))}$"):
        solve(tiny_config(), (*TINY, word), match="params", free="ffn")


def test_a_try_leaves_no_trace() -> None:
    words = (*NANO, GQA, "run_dir=x", "run_id=x")
    vary, plain = variants(words), load_config(words)
    for key, width in (("model.sizes.head_dim", 20), ("model.attention.head_dim", 24)):
        assert vary({key: width}).model.attention.head_dim == width
        assert vary({}) == plain
    with pytest.raises(UserError):
        vary({"model.sizes.head_dim": -1})
    with pytest.raises(UserError, match="heads"):
        vary({"model.sizes.heads": 2})
    assert vary({}) == plain
