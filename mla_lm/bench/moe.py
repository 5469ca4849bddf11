"""Suite `moe`: one MoE layer, forward and backward, against `transformers` and a dense layer.

4,096 tokens of width 384, 16 experts of width 256, 4 a token and one shared; the peer has the same
weights and gives the same output. The dense SwiGLU is as wide as the experts a token meets.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mla_lm.bench.report import Row, fastest, interleaved, median_row, ratio_row, timed
from mla_lm.config.compose import load_config
from mla_lm.model.layers import SwiGLU
from mla_lm.model.moe import MoE

DIM = 384
MODEL = (
    f"model.dim={DIM}",
    "model.sizes.moe_inter_dim=256",
    "model.sizes.n_routed_experts=16",
    "model.sizes.n_activated_experts=4",
)
N_TOKENS, ROUNDS = 4096, 9
GOALS = {"float32": 1.3, "bfloat16": 4.5}
DENSE_GOAL = 0.55
WAYS = ("eager", "grouped_mm")  # of the peer
Layer = Callable[[Tensor], Tensor]


class Side(NamedTuple):
    """A layer, and what computes its output."""

    module: nn.Module
    run: Layer


def run() -> list[Row]:
    """All figures, in float32 and under bfloat16 autocast."""
    return [row for name in GOALS for row in figures(name)]


def figures(number_format: str) -> Iterator[Row]:
    """Times of the sides in one number format, their ratios, and what they keep for backward."""
    ours, dense, peers = sides()
    x = torch.randn(1, N_TOKENS, DIM)
    with torch.autocast("cpu", torch.bfloat16, enabled=number_format == "bfloat16"):
        for side in peers.values():
            assert_equal(ours, side, x, within=1e-5 if number_format == "float32" else 0.1)
        peer = fastest({name: partial(seconds_of, side, x) for name, side in peers.items()})
        competing = {"ours": ours, f"transformers {peer}": peers[peer], "dense": dense}
        for side in (ours, dense):
            seconds_of(side, x)
        steps = [partial(seconds_of, side, x) for side in competing.values()]
        seconds = interleaved(steps, rounds=ROUNDS)
        kept = {name: saved_bytes(side, x) for name, side in competing.items()}
    what = f"moe layer, {number_format}"
    for name, values in zip(competing, seconds, strict=True):
        yield median_row(f"{what}: {name}", [1e3 * value for value in values], "ms")
    yield ratio_row(
        f"{what}: transformers / ours", seconds[1], seconds[0], goal=GOALS[number_format]
    )
    yield ratio_row(f"{what}: dense / ours", seconds[2], seconds[0], goal=DENSE_GOAL)
    for name, n_bytes in kept.items():
        yield Row(f"{what}: kept for backward, {name}", n_bytes / 2**20, "MiB")


def sides() -> tuple[Side, Side, dict[str, Side]]:
    """Ours, a dense layer of the same FLOPs, and the peer in each of its ways."""
    torch.manual_seed(0)
    cfg = load_config(MODEL).model
    moe = cfg.ffn
    assert moe.kind == "moe"
    layer = MoE(cfg.dim, moe)
    for p in layer.parameters():
        nn.init.normal_(p, std=0.02)
    nn.init.normal_(layer.router.weight, std=0.05)  # few choices hang on a rounding
    width = (moe.n_activated_experts + moe.n_shared_experts) * moe.moe_inter_dim
    dense = SwiGLU(cfg.dim, width)
    ours = Side(layer, lambda x: layer(x)[0])
    return ours, Side(dense, dense), {way: peer(layer, cfg.dim, way) for way in WAYS}


def peer(layer: MoE, dim: int, way: str) -> Side:
    """`transformers`' layer with our weights."""
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

    moe = layer.router.moe
    cfg: Any = DeepseekV3Config(
        hidden_size=dim,
        moe_intermediate_size=moe.moe_inter_dim,
        n_routed_experts=moe.n_routed_experts,
        n_shared_experts=moe.n_shared_experts,
        num_experts_per_tok=moe.n_activated_experts,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=moe.route_scale,
    )
    cfg._experts_implementation = way
    theirs = DeepseekV3MoE(cfg)
    assert layer.shared_experts is not None
    shared = {f"shared_experts.{k}": v for k, v in layer.shared_experts.state_dict().items()}
    theirs.load_state_dict(
        {
            "gate.weight": layer.router.weight,
            "gate.e_score_correction_bias": layer.router.e_score_correction_bias,
            "experts.gate_up_proj": layer.experts.gate_up_proj,
            "experts.down_proj": layer.experts.down_proj,
            **shared,
        }
    )
    return Side(theirs, theirs)


def seconds_of(side: Side, x: Tensor) -> float:
    """What forward and backward take."""
    side.module.zero_grad()
    leaf = x.detach().requires_grad_()
    return timed(lambda: side.run(leaf).square().mean().backward())


def assert_equal(one: Side, other: Side, x: Tensor, *, within: float) -> None:
    """Both give the same output and gradient of the input, up to a share of their size.

    Under autocast the peer's gate computes in bfloat16 and now and then chooses another expert.
    """
    results = []
    for side in (one, other):
        leaf = x.detach().requires_grad_()
        y = side.run(leaf)
        y.square().sum().backward()
        assert leaf.grad is not None
        results.append((y.detach().float(), leaf.grad))
    for mine, theirs in zip(*results, strict=True):
        assert (mine - theirs).norm() <= within * theirs.norm(), "the two layers differ"


def saved_bytes(side: Side, x: Tensor) -> int:
    """Bytes of the activations that the backward pass waits for; a buffer counts once."""
    weights = {p.untyped_storage().data_ptr() for p in side.module.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = side.run(x.detach().requires_grad_())
    del y
    return sum(sizes.values())
