"""`python -m mla_lm info` against real tensors and DeepSeek-V3's published sizes."""

import json

import pytest
import torch

from mla_lm import Transformer, load_config
from mla_lm.commands import info
from mla_lm.errors import UserError
from mla_lm.objective.optimizer import build_optimizer
from tests.conftest import tiny_config

KINDS = {"mla", "mha", "gqa", "mqa"}


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    info.run(words)
    return capsys.readouterr().out


def test_deepseek_v3_has_its_published_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(shown(capsys, "model=deepseek_v3", "--json"))
    parameters, parts = found["parameters"], found["parameters"]["parts"].values()
    assert round(parameters["total"] / 1e9) == 671
    assert 37 <= parameters["active"] / 1e9 < 38
    assert round((parameters["mtp"] + 2 * 129280 * 7168) / 1e9) in (13, 14)  # with its ends
    assert found["kv_cache_bytes_per_token"]["mla"] == 2 * 61 * (512 + 64) == 70_272
    for count in ("total", "active"):
        assert sum(part[count] for part in parts) == parameters[count]
    assert found["training_bytes"]["weights"] == 4 * (parameters["total"] + parameters["mtp"])


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_training_memory_is_that_of_real_tensors(kind: str) -> None:
    cfg = tiny_config(f"optim={kind}", "model.mtp_depth=1")
    model = Transformer(cfg.model)
    optimizer = build_optimizer(model, cfg.optim)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    states = [
        t for state in optimizer.state.values() for name, t in state.items() if name != "step"
    ]
    weights = sum(p.nbytes for p in model.parameters())
    assert info.training_bytes(cfg) == {
        "weights": weights,
        "gradients": weights,
        "optimizer state": sum(t.nbytes for t in states),
    }


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (["model.n_heads=3"], {"mla", "mha", "mqa"}),  # not a multiple of the heads of GQA
        (["model=nano", "++model.attention.kv_lora_rank=64"], KINDS),
        (["model=nano", "+model.attention={kv_lora_rank: 64}"], KINDS),
    ],
)
def test_kinds_that_the_overrides_do_not_fit_are_none(words: list[str], known: set[str]) -> None:
    cfg = load_config(words)
    found = info.kv_caches(cfg, words)
    assert {kind for kind, size in found.items() if size} == known
    assert found.keys() == KINDS
    elements = cfg.model.attention.kv_lora_rank + cfg.model.attention.qk_rope_head_dim
    assert found["mla"] == 2 * cfg.model.n_layers * elements


def test_only_the_chosen_kind_takes_its_own_keys() -> None:
    words = ["model=nano", "model/attention=gqa", "model.attention.head_dim=32"]
    plain, changed = (info.kv_caches(load_config(w), w) for w in (words[:2], words))
    assert changed == {**plain, "gqa": 2 * plain["gqa"]}


def test_tables_show_every_kind_at_every_context(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(capsys, "model.n_heads=3", "contexts=1000,2000")
    assert all(f" {kind} " in said for kind in KINDS)
    assert "2,000 tokens" in said
    (gqa,) = [line for line in said.splitlines() if " gqa " in line]
    assert gqa.replace("│", " ").split() == ["gqa", "-"]


@pytest.mark.parametrize("word", ["contexts=0", "contexts=many", "model.dimm=3"])
def test_mistakes_name_the_key(word: str) -> None:
    with pytest.raises(UserError, match=word.partition("=")[0]):
        info.run([word])
