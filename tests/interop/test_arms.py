"""MHA, GQA and MQA give the same logits in the class of `transformers` that is named for them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mla_lm.errors import UserError
from mla_lm.interop import config_dict
from tests.conftest import tiny_config
from tests.interop.folders import build, check_logits, theirs_class

DENSE = ("model/ffn=dense",)
PART = ("model.attention.rope_head_dim=6",)  # of 14
NORMED = ("model.attention.qk_norm=true", "model.norm_eps=0.01")
YARN = (
    "model/rope=yarn",
    "model.rope.theta=100.0",
    "model.rope.original_max_seq_len=8",
    "model.rope.beta_fast=0.25",
    "model.rope.beta_slow=0.05",
)
GLM, LLAMA, QWEN = "Glm4MoeForCausalLM", "LlamaForCausalLM", "Qwen3ForCausalLM"
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "experts": (GLM, ()),
    "experts, rotated in part": (GLM, PART),
    "experts, QK-norm": (GLM, (*PART, *NORMED)),
    "experts, groups": (
        GLM,
        ("model.ffn.n_routed_experts=8", "model.ffn.n_groups=4", "model.ffn.topk_groups=2"),
    ),
    "experts, route scale": (GLM, ("model.ffn.route_scale=2.5", "model.ffn.norm_topk=false")),
    "no dense layer": (GLM, ("model.n_dense_layers=0",)),
    "tied": (GLM, ("model.tie_embeddings=true",)),
    "yarn": (GLM, YARN),
    "yarn of unequal mscales": (GLM, (*YARN, "model.rope.mscale=0.3")),
    "yarn, rotated in part": (GLM, (*YARN, *PART, "model.rope.mscale_all_dim=0.0")),
    "a share that rounds down": (
        GLM,
        ("model.attention.head_dim=98", "model.attention.rope_head_dim=2"),
    ),
    "dense, rotated in part": (GLM, (*DENSE, *PART)),
    "dense, rotated in part, QK-norm": (GLM, (*DENSE, *PART, *NORMED)),
    "dense": (LLAMA, DENSE),
    "dense, tied": (LLAMA, (*DENSE, "model.tie_embeddings=true")),
    "dense, yarn": (LLAMA, (*DENSE, *YARN)),
    "dense, QK-norm": (QWEN, (*DENSE, *NORMED)),
    "dense, QK-norm, yarn": (QWEN, (*DENSE, *NORMED, *YARN)),
}


@pytest.mark.parametrize("attention", ["mha", "gqa", "mqa"])
@pytest.mark.parametrize(("name", "overrides"), ARMS.values(), ids=ARMS)
def test_logits_agree(
    name: str, overrides: tuple[str, ...], attention: str, tmp_path: Path
) -> None:
    check_logits(build(f"model/attention={attention}", *overrides), tmp_path)
    assert theirs_class(tmp_path).__name__ == name


def keep_adjacent_pairs(state: dict[str, Tensor]) -> None:
    """The order of rows that DeepSeek's weights have."""
    for name in ("q_proj", "k_proj"):
        key = f"model.layers.1.self_attn.{name}.weight"
        heads = state[key].view(-1, 14, 36)
        rope = heads[:, :6].unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2)
        state[key] = torch.cat((rope, heads[:, 6:]), dim=1).flatten(0, 1)


def rotate_the_trailing_part(state: dict[str, Tensor]) -> None:
    """As MLA does."""
    for name in ("q_proj", "k_proj"):
        key = f"model.layers.1.self_attn.{name}.weight"
        state[key] = state[key].view(-1, 14, 36).roll(8, dims=1).flatten(0, 1)


def leave_norms_in_pairs(state: dict[str, Tensor]) -> None:
    for name in ("q_norm", "k_norm"):
        key = f"model.layers.1.self_attn.{name}.weight"
        pairs = state[key][:6].view(2, 3).T.flatten()
        state[key] = torch.cat((pairs, state[key][6:]))


@pytest.mark.parametrize(
    "fault", [keep_adjacent_pairs, rotate_the_trailing_part, leave_norms_in_pairs]
)
def test_a_wrong_layout_is_found(fault: Any, tmp_path: Path) -> None:
    model = build("model/attention=gqa", *PART, *NORMED)
    with pytest.raises(AssertionError, match="not close"):
        check_logits(model, tmp_path, fault)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((*YARN, *PART), "model.rope.mscale_all_dim=1.0: Glm4MoeForCausalLM"),
        (("model.ffn.n_shared_experts=0",), "model.ffn.n_shared_experts=0: Glm4MoeForCausalLM"),
        ((*DENSE, "model.mtp_depth=1"), "model.mtp_depth=1: LlamaForCausalLM"),
    ],
)
def test_what_no_class_can_run_is_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_dict(tiny_config("model/attention=gqa", *overrides).model)
