import math

import pytest
import torch

from mla_lm import load_config
from mla_lm.errors import UserError
from mla_lm.model import Transformer
from mla_lm.objective.losses import next_token_loss
from tests.conftest import each_attention, random_tokens, randomized, tiny_config


@each_attention
def test_initial_loss_is_that_of_a_uniform_guess(attention: tuple[str, ...]) -> None:
    cfg = load_config(["model=nano", *attention]).model
    batch = random_tokens(cfg, 2, 33)
    with torch.no_grad():
        loss = next_token_loss(Transformer(cfg)(batch[:, :-1]).logits, batch[:, 1:])
    assert float(loss) == pytest.approx(math.log(cfg.vocab_size), rel=0.05)


def test_every_parameter_gets_a_gradient() -> None:
    cfg = tiny_config("model.mtp_depth=2", "model.attention.q_lora_rank=22").model
    model = randomized(Transformer(cfg))
    out = model(random_tokens(cfg, 4, 20))
    (out.logits.square().mean() + sum(state.square().mean() for state in out.mtp)).backward()
    assert [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()
    ] == []


def test_tied_embeddings_are_one_tensor() -> None:
    cfg = tiny_config("model.tie_embeddings=true").model
    model = Transformer(cfg)
    assert model.lm_head.weight is model.embed.weight
    assert sum(p.shape == (cfg.vocab_size, cfg.dim) for p in model.parameters()) == 1
    untied = Transformer(tiny_config().model)
    assert not torch.equal(untied.lm_head.weight, untied.embed.weight)


@each_attention
def test_partial_runs_agree_with_the_full_one(attention: tuple[str, ...]) -> None:
    cfg = tiny_config(*attention, "model.mtp_depth=2").model
    model, tokens = randomized(Transformer(cfg)), random_tokens(cfg, 2, 9)
    full, no_logits, no_mtp = model(tokens), model(tokens, logits=False), model(tokens, mtp=False)
    assert no_logits.logits is None
    assert no_mtp.mtp == ()
    exactly = {"rtol": 0, "atol": 0}
    torch.testing.assert_close(no_logits.hidden, full.hidden, **exactly)
    torch.testing.assert_close(no_logits.mtp, full.mtp, **exactly)
    torch.testing.assert_close(no_mtp.logits, full.logits, **exactly)
    torch.testing.assert_close(model.lm_head(full.hidden), full.logits, **exactly)


@torch.no_grad()
def test_residual_writers_start_smaller_than_other_weights() -> None:
    model = Transformer(load_config(["model=nano", "model.n_layers=8"]).model)
    attention, ffn = model.blocks[-1].attention, model.blocks[-1].ffn
    writers = [attention.o_proj.weight, ffn.experts.down_proj, ffn.shared_experts.down_proj.weight]
    others = [attention.q_proj.weight, ffn.experts.gate_up_proj, ffn.shared_experts.up_proj.weight]
    for weights, share in ((writers, 1 / 4), ([*others, model.embed.weight], 1)):
        for weight in weights:
            assert float(weight.std()) == pytest.approx(share * model.cfg.init_std, rel=0.1)


def test_too_long_an_input_is_refused() -> None:
    cfg = tiny_config().model
    model = Transformer(cfg)
    model(random_tokens(cfg, 1, cfg.max_seq_len))
    with pytest.raises(UserError, match=r"33 tokens exceed model\.max_seq_len=32"):
        model(random_tokens(cfg, 1, cfg.max_seq_len + 1))
