"""With documents packed in a row, neither attention nor MTP looks across their borders."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mla_lm.model import Transformer
from mla_lm.model import attention as attention_module
from mla_lm.objective.losses import mtp_targets, next_token_loss
from tests.conftest import each_attention, random_tokens, randomized, tiny_config

LENGTHS = (5, 7, 4)
DEPTHS = 2


def packed(attention: tuple[str, ...]) -> tuple[Transformer, Tensor, Tensor]:
    """A model, two rows of three documents, and the number of the document of each token."""
    cfg = tiny_config(*attention, f"model.mtp_depth={DEPTHS}").model
    model = randomized(Transformer(cfg)).eval()
    documents = torch.repeat_interleave(torch.arange(3), torch.tensor(LENGTHS)).expand(2, -1)
    return model, random_tokens(cfg, 2, sum(LENGTHS)), documents


@torch.no_grad()
def difference_to_alone(model: Transformer, tokens: Tensor, documents: Tensor) -> float:
    """The largest gap between a document in its row and the same document by itself."""
    out = model(tokens, documents=documents)
    gaps = []
    for start, length in zip((0, 5, 12), LENGTHS, strict=True):
        alone = model(tokens[:, start : start + length])
        gaps.append(out.logits[:, start : start + length] - alone.logits)
        for depth, (state, state_alone) in enumerate(zip(out.mtp, alone.mtp, strict=True), start=1):
            gaps.append(state[:, start : start + length - depth] - state_alone)
    return max(float(gap.abs().max()) for gap in gaps)


@each_attention
def test_a_document_in_a_row_is_what_it_is_alone(attention: tuple[str, ...]) -> None:
    model, tokens, documents = packed(attention)
    assert difference_to_alone(model, tokens, documents) < 1e-4
    assert difference_to_alone(model, tokens, torch.zeros_like(documents)) > 1e-2


def test_a_planted_leak_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens, documents = packed(())
    honest = attention_module.attend

    def unmasked(*qkv: Tensor, scale: float) -> Tensor:
        return honest(*qkv[:3], None, scale=scale)

    monkeypatch.setattr(attention_module, "attend", unmasked)
    assert difference_to_alone(model, tokens, documents) > 1e-2


def test_no_gradient_crosses_a_border() -> None:
    """Every loss of the second document leaves the embeddings of the others untouched."""
    model, tokens, documents = packed(())
    embeddings = model.embed(tokens).detach().requires_grad_()
    model.embed.register_forward_hook(lambda *_: embeddings)
    out = model(tokens, documents=documents)
    longer = F.pad(documents, (0, 1), value=9)
    labels = F.pad(tokens, (0, 1))
    inside = documents == 1
    loss = torch.zeros(())
    for depth, state in enumerate(out.mtp, start=1):
        targets = mtp_targets(labels, depth, longer)
        targets = targets.where(inside[:, : targets.shape[1]], -100)
        assert (targets != -100).any()
        loss = loss + next_token_loss(model.lm_head(state), targets)
    loss = loss + next_token_loss(out.logits, labels[:, 1:].where(inside, -100))
    (gradient,) = torch.autograd.grad(loss, embeddings)
    reach = gradient.abs().amax(dim=-1)
    assert not reach[~inside].any()
    assert (reach[inside] > 0).all()
