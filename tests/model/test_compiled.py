"""Compiled blocks compute what blocks do: whole where one kernel runs the experts, or in parts."""

import shutil
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from mla_lm.model import Transformer
from mla_lm.model.experts import Experts
from mla_lm.objective.losses import next_token_loss
from tests.conftest import random_tokens, randomized, tiny_config

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own
with_compiler = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler"),
]
INDUCTOR = pytest.param("inductor", marks=with_compiler)
each_backend = pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
ALIGNED = ("model.dim=32", "model.ffn.moe_inter_dim=32", "model.ffn.execution=grouped_mm")


@pytest.fixture(autouse=True)
def _forget() -> None:
    torch._dynamo.reset()


def step(model: Transformer, tokens: Tensor, **options: Any) -> dict[str, Tensor]:
    """Logits, MTP states, and all gradients."""
    model.zero_grad()
    out = model(tokens, **options)
    mtp = torch.stack([state.float().square().mean() for state in out.mtp]).sum()
    (next_token_loss(out.logits[:, :-1], tokens[:, 1:]) + mtp).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return {"logits": out.logits, "mtp": out.mtp[0]} | gradients


def pair(*words: str) -> tuple[Transformer, Transformer]:
    """Twice the same model, with experts and an MTP module."""
    cfg = tiny_config("model.mtp_depth=1", "model.n_layers=2", *words).model
    models = [randomized(Transformer(cfg)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    return models[0], models[1]


@each_backend
def test_in_parts(backend: str) -> None:
    plain, compiled = pair()
    compiled.compile_blocks(backend=backend)
    tokens = random_tokens(plain.cfg, 2, 17)
    checkpointing = "non_reentrant" if backend == "aot_eager" else "none"
    found = step(compiled, tokens, checkpointing=checkpointing)
    for name, wanted in step(plain, tokens).items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-5, msg=name)
    assert plain.state_dict().keys() == compiled.state_dict().keys()


@each_backend
def test_as_a_whole_in_bfloat16(backend: str) -> None:
    plain, compiled = pair(*ALIGNED)
    compiled.compile_blocks(backend=backend)
    tokens = random_tokens(plain.cfg, 2, 16)
    torch._dynamo.utils.counters.clear()
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = step(compiled, tokens), step(plain, tokens)
    for name, wanted in expected.items():
        assert (found[name] - wanted).norm() < 0.03 * wanted.norm() + 1e-6, name
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize(("major", "grouped"), [(9, True), (10, False), (7, False)])
def test_what_is_compiled_follows_the_way_experts_run(
    major: int, grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU alone decides nothing: `padded` reads the number of tokens of each expert."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, 0))
    monkeypatch.setattr(Parameter, "device", torch.device("cuda"))
    for dtype in (torch.bfloat16, torch.float32):
        _, model = pair("model.dim=32", "model.ffn.moe_inter_dim=32")
        monkeypatch.setattr(Transformer, "matmul_dtype", dtype)
        model.compile_blocks(backend="aot_eager")
        experts = [m for m in model.modules() if isinstance(m, Experts)]
        outside = ["forward" in vars(module) for module in experts]
        assert outside == [not (grouped and dtype == torch.bfloat16)] * len(experts)


def test_training_alone_takes_what_was_compiled() -> None:
    plain, compiled = pair()
    compiled.compile_blocks(backend="aot_eager")
    fail = partial(pytest.fail, "compiled code ran")
    for module in (*compiled.blocks, *compiled.mtp):
        module._compiled_call_impl = fail
    tokens = random_tokens(plain.cfg, 2, 9)
    with torch.no_grad():
        assert torch.equal(compiled(tokens).logits, plain(tokens).logits)
        cache = compiled.new_cache(2, 9)
        assert torch.allclose(compiled(tokens, cache=cache).logits, plain(tokens).logits, atol=1e-5)
