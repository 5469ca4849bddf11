"""On a real GPU: a step equals the CPU's in float32, a run resumes, idle experts stay still."""

from functools import partial

import pytest
import torch
from torch.utils._pytree import tree_map_only

from mla_lm.bench import steps
from mla_lm.model.experts import WAYS, Experts
from tests.conftest import each_attention, tiny_config
from tests.model.test_moe import moe_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU"),
]


@each_attention
def test_a_step_equals_that_of_the_cpu(attention: tuple[str, ...]) -> None:
    cfg = tiny_config(*attention, "optim=adamw")
    sides = [steps.ours(cfg, device=device) for device in ("cpu", "cuda")]
    for side, device in zip(sides, ("cpu", "cuda"), strict=True):
        side.loss(steps.batch(cfg, device)).backward()
    for ours, theirs in zip(*(side.model.parameters() for side in sides), strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(theirs.grad.cpu(), ours.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_run_resumes(kind: str) -> None:
    cfg = tiny_config(f"optim={kind}")
    side, resumed = (steps.ours(cfg, device="cuda") for _ in range(2))
    tokens = steps.batch(cfg, "cuda")
    side.step(tokens, "32-true")
    on_host = partial(tree_map_only, torch.Tensor, torch.Tensor.cpu)
    resumed.model.load_state_dict(on_host(side.model.state_dict()))
    resumed.optimizer.load_state_dict(on_host(side.optimizer.state_dict()))
    losses = [[one.step(tokens, "32-true") for _ in range(2)] for one in (side, resumed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("way", ["auto", *WAYS])
def test_experts_without_tokens_have_no_gradient(way: str) -> None:
    layer = Experts(32, moe_config(6, 2, execution=way, moe_inter_dim=32)).cuda()
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.3)
    chosen = torch.tensor([[0, 2]], device="cuda").expand(128, 2)
    with torch.autocast("cuda", torch.bfloat16):
        y = layer(torch.randn(128, 32, device="cuda"), chosen, torch.rand(128, 2, device="cuda"))
    y.sum().backward()
    for p in layer.parameters():
        assert p.grad is not None
        assert not p.grad[[1, 3, 4, 5]].any()
