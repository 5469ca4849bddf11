"""The exported layout gives the same logits in `transformers`."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mla_lm.errors import UserError
from mla_lm.interop import config_dict, to_hugging_face
from mla_lm.model import attention
from tests.conftest import tiny_config
from tests.interop.folders import build, check_logits

GROUPS = (
    "model.ffn.n_routed_experts=8",
    "model.ffn.n_groups=4",
    "model.ffn.topk_groups=2",
    "model.ffn.n_activated_experts=3",
)
YARN = (
    "model/rope=yarn",
    "model.rope.theta=100.0",
    "model.rope.original_max_seq_len=8",  # of the 32 that are read
    "model.rope.beta_fast=0.25",  # so that of six pairs some stay and some are blended
    "model.rope.beta_slow=0.05",
    "model.attention.qk_rope_head_dim=12",
)
MODELS = {
    "plain": (),
    "q compression": ("model.attention.q_lora_rank=22",),
    "groups": GROUPS,
    "route scale": ("model.ffn.route_scale=2.5",),
    "unnormalised weights": ("model.ffn.norm_topk=false",),
    "two shared experts": ("model.ffn.n_shared_experts=2",),
    "tied": ("model.tie_embeddings=true",),
    "dense": ("model/ffn=dense",),
    "all layers MoE": ("model.n_dense_layers=0",),
    "no layer MoE": ("model.n_dense_layers=3",),
    "norm eps and theta": ("model.norm_eps=0.01", "model.rope.theta=500.0"),
    "yarn": YARN,
    "yarn as preset": ("model/rope=yarn", "model.rope.original_max_seq_len=8"),
    "yarn with room to spare": (*YARN, "model.rope.factor=40.0"),
    "yarn of equal mscales": (*YARN, "model.rope.mscale=0.7", "model.rope.mscale_all_dim=0.7"),
    "yarn that scales tables": (*YARN, "model.rope.mscale_all_dim=0.3"),
    "yarn that scales tables only": (*YARN, "model.rope.mscale_all_dim=0.0"),
    "yarn with one bound": (*YARN, "model.rope.beta_slow=0.25"),
    "yarn of factor one": (*YARN, "model.rope.factor=1.0", "model.rope.original_max_seq_len=32"),
    "all at once": (*GROUPS, "model.attention.q_lora_rank=22", "model.ffn.route_scale=2.5", *YARN),
}


@pytest.mark.parametrize("overrides", MODELS.values(), ids=MODELS)
def test_logits_agree(overrides: tuple[str, ...], tmp_path: Path) -> None:
    model = build(*overrides)
    check_logits(model, tmp_path)


def swap_gate_and_up(state: dict[str, Tensor]) -> None:
    stem = "model.layers.1.mlp.experts.2"
    gate, up = f"{stem}.gate_proj.weight", f"{stem}.up_proj.weight"
    state[gate], state[up] = state[up], state[gate]


def rotate_halves(state: dict[str, Tensor]) -> None:
    """The order of rotary rows that a half-rotating model would store."""
    name = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
    latent, rope = state[name].split((20, 6))
    state[name] = torch.cat((latent, rope[0::2], rope[1::2]))


def forget_the_bias(state: dict[str, Tensor]) -> None:
    state["model.layers.1.mlp.gate.e_score_correction_bias"] = torch.zeros(5)


@pytest.mark.parametrize("fault", [swap_gate_and_up, rotate_halves, forget_the_bias])
def test_a_wrong_layout_is_found(fault: Any, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not close"):
        check_logits(build(), tmp_path, fault)


@pytest.mark.parametrize(
    "rope",
    [
        {"kind": "plain"},
        {"factor": 5.0},
        {"original_max_seq_len": 16},
        {"beta_fast": 0.5},
        {"beta_slow": 0.1},
        {"mscale": 0.5},
        {"mscale_all_dim": 0.5},
    ],
    ids=str,
)
def test_wrong_positions_are_found(rope: dict[str, Any], tmp_path: Path) -> None:
    model = build(*YARN)
    wrong = model.cfg.rope.model_copy(update=rope)
    if "kind" in rope:
        wrong = tiny_config("model.rope.theta=100.0").model.rope
    model.cfg = model.cfg.model_copy(update={"rope": wrong})
    with pytest.raises(AssertionError, match="not close"):
        check_logits(model, tmp_path)


def test_a_softmax_that_yarn_does_not_sharpen_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "softmax_scale", lambda width, rope: width**-0.5)
    model = build(*YARN)
    with pytest.raises(AssertionError, match="not close"):
        check_logits(model, tmp_path)


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.rope.mscale=0.7", "model.rope.mscale_all_dim=0.0"),
        ("model.rope.mscale=0.0",),
        ("model.rope.mscale=0.0", "model.rope.mscale_all_dim=0.0"),
        # a pair that turns 4 times in 8 tokens would come before the first: the class slows none
        ("model.rope.beta_fast=8.0", "model.rope.beta_slow=4.0"),
    ],
    ids=" ".join,
)
def test_yarn_of_unusual_constants_agrees(overrides: tuple[str, ...], tmp_path: Path) -> None:
    model = build(*YARN, *overrides)
    check_logits(model, tmp_path)


def test_experts_are_separate_matrices_on_disk() -> None:
    model = build()
    state = to_hugging_face(model.state_dict(), model.cfg)
    for name in ("gate_proj", "up_proj"):
        for expert in range(5):
            assert state[f"model.layers.2.mlp.experts.{expert}.{name}.weight"].shape == (28, 36)
    assert not any("gate_up" in name for name in state)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.ffn.n_shared_experts=0",), "model.ffn.n_shared_experts=0"),
        (("model/ffn=dense", "model.mtp_depth=1"), "model.mtp_depth"),
    ],
)
def test_what_the_class_cannot_run_is_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        config_dict(tiny_config(*overrides).model)
