"""Activation checkpointing changes memory and time, and nothing else."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mla_lm.config import Checkpointing
from mla_lm.model import ModelOutput, Transformer
from mla_lm.objective.losses import next_token_loss, sequence_balance_loss
from tests.conftest import each_attention, random_tokens, randomized, tiny_config


def run(
    model: Transformer, tokens: Tensor, checkpointing: Checkpointing, **options: Any
) -> tuple[ModelOutput, dict[str, Tensor]]:
    """The output, and the gradients of a loss that needs logits, MTP and routing scores."""
    out = model(tokens, checkpointing=checkpointing, **options)
    loss = next_token_loss(out.logits[:, :-1], tokens[:, 1:])
    loss = loss + sum(state.square().mean() for state in out.mtp)
    loss = loss + sum(sequence_balance_loss(routing) for routing in out.routing)
    model.zero_grad()
    loss.backward()
    return out, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("checkpointing", "masked"), [("reentrant", True), ("non_reentrant", False)]
)
@each_attention
def test_outputs_and_gradients_are_the_same(
    attention: tuple[str, ...], checkpointing: Checkpointing, masked: bool
) -> None:
    cfg = tiny_config(*attention, "model.mtp_depth=2").model
    model, tokens = randomized(Transformer(cfg)), random_tokens(cfg, 2, 17)
    documents = torch.arange(17).expand(2, -1) // 5 if masked else None
    out, gradients = run(model, tokens, checkpointing, documents=documents)
    expected, wanted = run(model, tokens, "none", documents=documents)
    assert torch.equal(out.logits, expected.logits)
    for mine, theirs in zip(out.routing, expected.routing, strict=True):
        assert torch.equal(mine.experts, theirs.experts)
        assert torch.equal(mine.scores, theirs.scores)
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("checkpointing", ["reentrant", "non_reentrant"])
def test_fewer_activations_are_kept(checkpointing: Checkpointing) -> None:
    cfg = tiny_config("model.mtp_depth=1").model
    model, tokens = Transformer(cfg), random_tokens(cfg, 4, 32)
    kept: dict[str, int] = {}

    def count(how: Checkpointing) -> int:
        sizes: list[int] = []
        pack = lambda t: (sizes.append(t.nbytes), t)[1]  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(tokens, logits=False, checkpointing=how)
        return sum(sizes)

    kept = {how: count(how) for how in ("none", checkpointing)}
    assert kept[checkpointing] < 0.3 * kept["none"]
