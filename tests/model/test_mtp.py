"""Which embedding meets which hidden state, by replacing the module's parts with identities."""

import pytest
import torch
from torch import Tensor, nn

from mla_lm.model import Routing, Transformer
from mla_lm.model.mtp import MTPModule
from mla_lm.objective.losses import mtp_targets, next_token_loss
from tests.conftest import random_tokens, randomized, tiny_config

DEPTH = 2


class PassThrough(nn.Module):
    """A block that changes nothing."""

    def forward(self, x: Tensor, *positions: Tensor | None) -> tuple[Tensor, Routing | None]:
        return x, None


@torch.no_grad()
def keep_only(module: MTPModule, part: str) -> None:
    """Turn `module` into a selector of its `embedding` or its `hidden` input."""
    dim = module.proj.out_features
    module.block = PassThrough()
    module.embed_norm = module.hidden_norm = module.norm = nn.Identity()
    module.proj.weight.zero_()
    first = 0 if part == "embedding" else dim
    module.proj.weight[:, first : first + dim] = torch.eye(dim)


def build(*overrides: str) -> tuple[Transformer, Tensor]:
    """A model of two depths and a batch (2, T + 1) as training sees it."""
    cfg = tiny_config(f"model.mtp_depth={DEPTH}", *overrides).model
    return randomized(Transformer(cfg)), random_tokens(cfg, 2, 9)


def test_depth_k_meets_the_embedding_of_token_k_later_and_predicts_the_next() -> None:
    model, batch = build()
    for module in model.mtp:
        keep_only(module, "embedding")
    out = model(batch[:, :-1])
    for k, state in enumerate(out.mtp, start=1):
        targets = mtp_targets(batch, k)
        assert targets.shape == state.shape[:2]
        for i in range(state.shape[1]):
            torch.testing.assert_close(state[:, i], model.embed(batch[:, i + k]), rtol=0, atol=0)
            assert torch.equal(targets[:, i], batch[:, i + k + 1])


def test_depth_two_continues_from_the_output_of_depth_one() -> None:
    model, batch = build()
    keep_only(model.mtp[0], "embedding")
    keep_only(model.mtp[1], "hidden")
    torch.testing.assert_close(
        model(batch[:, :-1]).mtp[1], model.embed(batch[:, 1:-2]), rtol=0, atol=0
    )


def test_input_of_depth_one_is_the_normed_state_or_the_one_before_the_norm() -> None:
    model, batch = build()
    before_norm, _ = build("model.mtp_input=pre_norm")
    before_norm.load_state_dict(model.state_dict())
    for each in (model, before_norm):
        keep_only(each.mtp[0], "hidden")
    out, early = model(batch[:, :-1]), before_norm(batch[:, :-1])
    torch.testing.assert_close(out.mtp[0], out.hidden[:, :-1], rtol=0, atol=0)
    torch.testing.assert_close(before_norm.norm(early.mtp[0]), early.hidden[:, :-1])
    assert (early.mtp[0] - early.hidden[:, :-1]).abs().max() > 0.1


def test_embedding_and_head_are_the_main_models_own() -> None:
    model, batch = build()
    vocab = model.cfg.vocab_size
    assert all(vocab not in p.shape for p in model.mtp.parameters())

    def gradients(*losses: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(sum(losses), [model.embed.weight, model.lm_head.weight]))

    def losses() -> list[Tensor]:
        out = model(batch[:, :-1])
        logits = [out.logits, *(model.lm_head(state) for state in out.mtp)]
        return [next_token_loss(each, mtp_targets(batch, k)) for k, each in enumerate(logits)]

    together = gradients(*losses())
    alone = [gradients(losses()[k]) for k in range(1 + DEPTH)]
    assert all(gradient.abs().max() > 0 for pair in alone for gradient in pair)
    for total, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(total, sum(parts), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n_dense_layers", [0, 1, 3])
def test_routing_follows_the_order_of_routers_and_includes_mtp(n_dense_layers: int) -> None:
    model, batch = build(f"model.n_dense_layers={n_dense_layers}")
    scores: list[Tensor] = []
    routers = list(model.routers().values())
    for router in routers:
        router.register_forward_hook(lambda _, __, output: scores.append(output[0].scores))
    out = model(batch[:, :-1])
    assert len(routers) == len(scores) == len(out.routing) == 3 - n_dense_layers + DEPTH
    assert len({id(router) for router in routers}) == len(routers)
    assert [router in list(model.mtp.modules()) for router in routers[-DEPTH:]] == [True] * DEPTH
    assert all(routing.scores is each for routing, each in zip(out.routing, scores, strict=True))
    assert len(model(batch[:, :-1], mtp=False).routing) == 3 - n_dense_layers


@pytest.mark.parametrize(("depth", "length"), [(1, 1), (2, 1), (2, 2), (3, 2), (5, 3)])
def test_a_row_too_short_for_a_depth_gives_an_empty_state(depth: int, length: int) -> None:
    cfg = tiny_config(f"model.mtp_depth={depth}").model
    out = Transformer(cfg)(random_tokens(cfg, 1, length))
    assert out.logits.shape == (1, length, cfg.vocab_size)
    assert [state.shape for state in out.mtp] == [
        (1, max(0, length - k), cfg.dim) for k in range(1, depth + 1)
    ]
