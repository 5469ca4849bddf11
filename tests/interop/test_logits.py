"""The exported layout gives the same logits in the class of `transformers` named for it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mla_lm.errors import UserError
from mla_lm.interop import config_dict
from tests.conftest import tiny_config
from tests.interop.folders import build, check_logits, theirs_class

DEEPSEEK, GLM = "DeepseekV3ForCausalLM", "Glm4MoeForCausalLM"
LLAMA, QWEN = "LlamaForCausalLM", "Qwen3ForCausalLM"
GROUPS = (
    "model.ffn.n_routed_experts=8",
    "model.ffn.n_groups=4",
    "model.ffn.topk_groups=2",
    "model.ffn.n_activated_experts=3",
)
SHORT_YARN = (
    "model/rope=yarn",
    "model.rope.theta=100.0",
    "model.rope.original_max_seq_len=8",  # of the 32 that are read
    "model.rope.beta_fast=0.25",  # so that of six pairs some stay and some are blended
    "model.rope.beta_slow=0.05",
)
YARN = (*SHORT_YARN, "model.attention.qk_rope_head_dim=12")
ONE, NO = "model.rope.factor=1.0", "model.rope.mscale=0.0"
NO_ALL_DIM = "model.rope.mscale_all_dim=0.0"
ROUNDED_DOWN = ("model.attention.head_dim=98", "model.attention.rope_head_dim=2")
MHA, GQA, MQA = (f"model/attention={kind}" for kind in ("mha", "gqa", "mqa"))
DENSE, TIED = "model/ffn=dense", "model.tie_embeddings=true"
PART = "model.attention.rope_head_dim=6"  # of 14
NORMED = ("model.attention.qk_norm=true", "model.norm_eps=0.01")
PARTLY = (GQA, PART, *NORMED)
MODELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "plain": (DEEPSEEK, ()),
    "groups": (DEEPSEEK, GROUPS),
    "unnormalised weights": (DEEPSEEK, ("model.ffn.norm_topk=false", "model.ffn.route_scale=2.5")),
    "two shared experts, tied": (DEEPSEEK, ("model.ffn.n_shared_experts=2", TIED)),
    "dense": (DEEPSEEK, (DENSE,)),
    "all layers MoE": (DEEPSEEK, ("model.n_dense_layers=0",)),
    "no layer MoE": (DEEPSEEK, ("model.n_dense_layers=3",)),
    "eps and theta": (DEEPSEEK, ("model.norm_eps=0.01", "model.rope.theta=500.0")),
    "all at once": (DEEPSEEK, (*GROUPS, "model.attention.q_lora_rank=22", *YARN)),
    "yarn that scales tables": (DEEPSEEK, (*YARN, "model.rope.mscale_all_dim=0.3")),
    "yarn without mscale": (DEEPSEEK, (*YARN, NO)),
    "yarn without either": (DEEPSEEK, (*YARN, NO, NO_ALL_DIM)),
    "yarn with one bound": (DEEPSEEK, (*YARN, "model.rope.beta_slow=0.25")),
    # a pair that turns 4 times in 8 tokens would come before the first: the class slows none
    "yarn before the first": (
        DEEPSEEK,
        (*YARN, "model.rope.beta_fast=8.0", "model.rope.beta_slow=4.0"),
    ),
    "yarn of factor one": (DEEPSEEK, (*YARN, ONE, "model.rope.original_max_seq_len=32")),
    "mha": (GLM, (MHA,)),
    "gqa, rotated in part, QK-norm": (GLM, PARTLY),
    "gqa, groups": (GLM, (GQA, *GROUPS)),
    "gqa, route scale": (GLM, (GQA, "model.ffn.route_scale=2.5", "model.ffn.norm_topk=false")),
    "mqa, no dense layer, tied": (GLM, (MQA, "model.n_dense_layers=0", TIED)),
    "gqa, yarn of unequal mscales": (GLM, (GQA, *SHORT_YARN, "model.rope.mscale=0.3")),
    "mha, yarn, rotated in part": (GLM, (MHA, *SHORT_YARN, PART, NO_ALL_DIM)),
    "gqa, a share that rounds down": (GLM, (GQA, *ROUNDED_DOWN)),
    "mqa, dense, rotated in part": (GLM, (MQA, DENSE, PART)),
    "gqa, dense": (LLAMA, (GQA, DENSE)),
    "mha, dense, tied": (LLAMA, (MHA, DENSE, TIED)),
    "gqa, dense, width no multiple of heads": (GLM, (GQA, DENSE, "model.dim=38")),
    "mqa, dense, yarn": (LLAMA, (MQA, DENSE, *SHORT_YARN)),
    "gqa, dense, QK-norm, yarn": (QWEN, (GQA, DENSE, *NORMED, *SHORT_YARN)),
}


@pytest.mark.parametrize(("name", "overrides"), MODELS.values(), ids=MODELS)
def test_logits_agree(name: str, overrides: tuple[str, ...], tmp_path: Path) -> None:
    check_logits(build(*overrides), tmp_path)
    assert theirs_class(tmp_path).__name__ == name


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


def keep_adjacent_pairs(state: dict[str, Tensor]) -> None:
    """The order of rows that DeepSeek's weights have."""
    for name in ("q_proj", "k_proj"):
        key = f"model.layers.1.self_attn.{name}.weight"
        heads = state[key].view(-1, 14, 36)
        rope = heads[:, :6].unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2)
        state[key] = torch.cat((rope, heads[:, 6:]), dim=1).flatten(0, 1)


def leave_norms_in_pairs(state: dict[str, Tensor]) -> None:
    for name in ("q_norm", "k_norm"):
        key = f"model.layers.1.self_attn.{name}.weight"
        pairs = state[key][:6].view(2, 3).T.flatten()
        state[key] = torch.cat((pairs, state[key][6:]))


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        ((), swap_gate_and_up),
        ((), rotate_halves),
        ((), forget_the_bias),
        (PARTLY, keep_adjacent_pairs),
        (PARTLY, leave_norms_in_pairs),
    ],
)
def test_a_wrong_layout_is_found(
    overrides: tuple[str, ...], fault: Callable[[dict[str, Tensor]], None], tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match="not close"):
        check_logits(build(*overrides), tmp_path, fault)


@pytest.mark.parametrize(
    ("key", "value"), [("factor", 5.0), ("beta_fast", 0.5), ("beta_slow", 0.1), ("mscale", 0.5)]
)
def test_wrong_positions_are_found(key: str, value: float, tmp_path: Path) -> None:
    model = build(*YARN)
    wrong = model.cfg.rope.model_copy(update={key: value})
    model.cfg = model.cfg.model_copy(update={"rope": wrong})
    with pytest.raises(AssertionError, match="not close"):
        check_logits(model, tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.ffn.n_shared_experts=0",), f"model.ffn.n_shared_experts=0: {DEEPSEEK}"),
        (("model.ffn.force_balance=true",), f"model.ffn.force_balance=true: {DEEPSEEK}"),
        ((DENSE, "model.mtp_depth=1"), f"model.mtp_depth=1: {DEEPSEEK}"),
        (("model.mtp_depth=1", "model.mtp_input=pre_norm"), "model.mtp_input=pre_norm"),
        ((GQA, *SHORT_YARN, PART), f"model.rope.mscale_all_dim=1.0: {GLM}"),
        ((GQA, DENSE, "model.mtp_depth=1"), f"model.mtp_depth=1: {LLAMA}"),
    ],
)
def test_what_no_class_can_run_is_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_dict(tiny_config(*overrides).model)
