"""Under bfloat16 autocast: norms stay fused, and gradients stay close to those of float32."""

import pytest
import torch
from torch import Tensor

from mla_lm.model import Transformer, layers
from mla_lm.model.layers import RMSNorm
from mla_lm.objective import losses
from tests.conftest import each_attention, random_tokens, randomized, tiny_config


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_keeps_the_type_of_its_input(dtype: torch.dtype) -> None:
    norm = RMSNorm(6, eps=1e-6)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    x = torch.randn(3, 6)
    expected = norm.weight * x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    actual = norm(x.to(dtype))
    assert actual.dtype == dtype
    torch.testing.assert_close(
        actual.float(), expected, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-5
    )


def test_norm_keeps_it_where_autocast_returns_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CUDA's does, other than that of a CPU."""
    honest = layers.F.rms_norm
    monkeypatch.setattr(layers.F, "rms_norm", lambda *given: honest(*given).float())
    assert RMSNorm(6, eps=1e-6)(torch.randn(3, 6).bfloat16()).dtype == torch.bfloat16


@each_attention
def test_bf16_autocast_trains_like_float32(attention: tuple[str, ...]) -> None:
    cfg = tiny_config(*attention).model
    model = randomized(Transformer(cfg))
    batch = random_tokens(cfg, 3, 33)

    def gradient() -> Tensor:
        model.zero_grad()
        out = model(batch[:, :-1])
        losses.next_token_loss(out.logits, batch[:, 1:]).backward()
        return model.blocks[0].attention.o_proj.weight.grad.clone()

    exact = gradient()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gradient()
    assert 0 < (exact - rounded).norm() / exact.norm() < 0.1
