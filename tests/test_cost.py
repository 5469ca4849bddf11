"""The closed forms against counted tensors and counted FLOPs."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mla_lm.config import ModelConfig
from mla_lm.cost import (
    cache_elements_per_token,
    count_parameters,
    describe,
    train_flops_per_token,
    training_bytes,
)
from mla_lm.model import Transformer
from mla_lm.model import attention as attention_module
from mla_lm.model import experts as experts_module
from mla_lm.objective.optimizer import build_optimizer
from tests.conftest import each_attention, random_tokens, tiny_config

each_ffn = pytest.mark.parametrize("ffn", ["dense", "moe"])


def counted_parameters(model: Transformer) -> tuple[int, int, int, int]:
    """Total and active of the main model, total and active of MTP, from the tensors themselves."""
    totals = {"main": [0, 0], "mtp": [0, 0]}
    for name, p in model.named_parameters():
        counts = totals["mtp" if name.startswith("mtp") else "main"]
        counts[0] += p.numel()
        used = model.cfg.ffn.n_activated_experts if ".experts." in name else 1
        counts[1] += p[:used].numel() if ".experts." in name else p.numel()
    return (*totals["main"], *totals["mtp"])


@pytest.mark.parametrize(
    "unusual",
    [
        ("model/ffn=dense",),
        ("model.ffn.n_shared_experts=0",),
        ("model.ffn.n_shared_experts=3", "model.n_dense_layers=0"),
        ("model.n_dense_layers=3",),
    ],
    ids=" ".join,
)
@each_attention
def test_parameters_equal_counted_ones(
    attention: tuple[str, ...], unusual: tuple[str, ...]
) -> None:
    cfg = tiny_config(*attention, *unusual).model
    for depth, tied in ((0, True), (1, False), (2, True)):
        cfg = cfg.model_copy(update={"mtp_depth": depth, "tie_embeddings": tied})
        assert count_parameters(cfg) == counted_parameters(Transformer(cfg))


def test_parameters_of_normalised_queries_equal_counted_ones() -> None:
    words = ("model/attention=gqa", "model.attention.qk_norm=true")
    cfg = tiny_config(*words, "model.attention.rope_head_dim=4").model
    assert count_parameters(cfg) == counted_parameters(Transformer(cfg))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@each_ffn
@each_attention
def test_training_memory_is_that_of_real_tensors(
    attention: tuple[str, ...], ffn: str, optimizer: str
) -> None:
    run = tiny_config(*attention, f"model/ffn={ffn}", f"optim={optimizer}")
    for depth, tied in ((0, True), (2, False)):
        cfg = run.model.model_copy(update={"mtp_depth": depth, "tie_embeddings": tied})
        model = Transformer(cfg)
        stepped = build_optimizer(model, run.optim)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        stepped.step()
        moments = [
            t for state in stepped.state.values() for name, t in state.items() if name != "step"
        ]
        weights = sum(p.nbytes for p in model.parameters())
        assert training_bytes(cfg, run.optim.kind) == {
            "weights": weights,
            "gradients": weights,
            "optimizer state": sum(t.nbytes for t in moments),
        }


def without_core(q: Tensor, k: Tensor, v: Tensor, mask: None, *, scale: float) -> Tensor:
    return v.repeat_interleave(q.shape[1] // v.shape[1], dim=1).transpose(1, 2)


def explicit_core(q: Tensor, k: Tensor, v: Tensor, mask: None, *, scale: float) -> Tensor:
    """Attention as two full matrix products, which count twice the causal half."""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    return ((scale * q @ k.mT).softmax(-1) @ v).transpose(1, 2)


def forward_flops(cfg: ModelConfig, tokens: Tensor) -> int:
    """FLOPs of a forward pass with the logits of every MTP depth."""
    model = Transformer(cfg)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for state in model(tokens).mtp:
            model.lm_head(state)
    return counter.get_total_flops()


@each_ffn
@each_attention
def test_flops_equal_counted_ones(
    monkeypatch: pytest.MonkeyPatch, attention: tuple[str, ...], ffn: str
) -> None:
    monkeypatch.setattr(experts_module, "ROW_BLOCK", 1)  # no padding
    cfg = tiny_config(*attention, f"model/ffn={ffn}").model.model_copy(update={"mtp_depth": 0})
    batch, length = 2, 24
    tokens = random_tokens(cfg, batch, length)
    counts = {}
    for core in (without_core, explicit_core):
        monkeypatch.setattr(attention_module, "attend", core)
        counts[core] = forward_flops(cfg, tokens)
    causal = (counts[without_core] + counts[explicit_core]) / 2
    assert 3 * causal == batch * length * train_flops_per_token(cfg, length)
    assert counts[explicit_core] > counts[without_core]

    with_mtp = cfg.model_copy(update={"mtp_depth": 1})
    per_token = train_flops_per_token(with_mtp, length - 1) - train_flops_per_token(cfg, length - 1)
    matmul = per_token / 3 - core_flops(cfg, length - 1)
    monkeypatch.setattr(attention_module, "attend", without_core)
    counted = forward_flops(with_mtp, tokens) - counts[without_core]
    assert counted == pytest.approx(batch * (length - 1) * matmul)


def core_flops(cfg: ModelConfig, length: int) -> float:
    """Of one layer, per token and forward pass: what the length adds to the whole."""
    longer, shorter = (train_flops_per_token(cfg, n) for n in (2 * length, length))
    return (longer - shorter) / 3 / cfg.n_layers


def test_tied_embeddings_cost_the_same_flops() -> None:
    tied, untied = (tiny_config(f"model.tie_embeddings={flag}").model for flag in ("true", "false"))
    assert train_flops_per_token(tied, 24) == train_flops_per_token(untied, 24)


@pytest.mark.parametrize(
    ("attention", "per_layer"),
    [("mla", 20 + 6), ("mha", 2 * 4 * 14), ("gqa", 2 * 2 * 14), ("mqa", 2 * 1 * 14)],
)
def test_cache_by_hand(attention: str, per_layer: int) -> None:
    cfg = tiny_config(f"model/attention={attention}").model
    assert cache_elements_per_token(cfg) == 3 * per_layer


def test_the_plan_of_a_run_names_its_costs() -> None:
    text = describe(tiny_config("trainer.max_steps=1200", "data.batch_size=4"), "32-true")
    assert "mla + moe" in text
    assert f"KV cache    {3 * (20 + 6)} elements per token ({2 * 3 * (20 + 6)} bytes" in text
    assert "1,200 steps of 128 tokens" in text
