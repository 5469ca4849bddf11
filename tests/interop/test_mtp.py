"""MTP modules give the same states and logits in `transformers`, and draft there."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from mla_lm.interop import to_hugging_face
from mla_lm.model import Transformer
from tests.conftest import random_tokens
from tests.interop.folders import build, load, theirs_class, write
from tests.interop.test_logits import PARTLY

Fault = Callable[[dict[str, Tensor]], None]


@torch.no_grad()
def check_mtp(
    model: Transformer, folder: Path, patch: pytest.MonkeyPatch, fault: Fault | None = None
) -> None:
    """Compare states and logits of every depth at every position."""
    state = to_hugging_face(model.state_dict(), model.cfg)
    if fault is not None:
        fault(state)
    write(model, state, folder)
    ignored = [rf"model\.layers\.{model.cfg.n_layers + k}\..*" for k in range(model.cfg.mtp_depth)]
    # their classes know the MTP layers of the released models only
    patch.setattr(theirs_class(folder), "_keys_to_ignore_on_load_unexpected", ignored)
    theirs = load(folder)
    heads = transformers.modeling_layers.MtpModel.from_pretrained(theirs).eval()
    tokens = random_tokens(model.cfg, 2, 17)
    out, hidden = model(tokens), theirs.model(tokens).last_hidden_state
    for k, ours in enumerate(out.mtp, start=1):
        positions = torch.arange(ours.shape[1])[None]
        hidden = heads.forward_layer(
            k - 1, hidden[:, : ours.shape[1]], positions, None, input_ids=tokens[:, k:]
        )
        logits = model.lm_head(ours)
        assert logits.std() > 0.1
        torch.testing.assert_close(hidden, ours, rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(heads.shared_head(hidden), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("arm", "depth"), [((), 2), (("model/attention=mha",), 1), (PARTLY, 2)])
def test_states_and_logits_agree(
    arm: tuple[str, ...], depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(*arm, depth=depth)
    check_mtp(model, tmp_path, monkeypatch)
    state = to_hugging_face(model.state_dict(), model.cfg)
    for layer in range(3, 3 + depth):  # they carry the shared ends again
        assert torch.equal(state[f"model.layers.{layer}.embed_tokens.weight"], model.embed.weight)
        head = state[f"model.layers.{layer}.shared_head.head.weight"]
        assert torch.equal(head, model.lm_head.weight)


def swap_halves(state: dict[str, Tensor]) -> None:
    """The hidden state first, as the paper's text has it."""
    name = "model.layers.3.eh_proj.weight"
    state[name] = state[name].roll(state[name].shape[0], dims=1)


def test_a_wrong_layout_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="not close"):
        check_mtp(build(depth=1), tmp_path, monkeypatch, swap_halves)
