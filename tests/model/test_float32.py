"""Tables of positions and routing biases stay in float32 whatever a model is converted to."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mla_lm.model import Transformer
from mla_lm.model.layers import KeepsFloat32
from tests.conftest import each_attention, random_tokens, randomized, tiny_config
from tests.model.test_cache import SMALL

BF16 = torch.bfloat16
CONVERSIONS: dict[str, tuple[Callable[[nn.Module], nn.Module], torch.dtype]] = {
    "bfloat16()": (lambda module: module.bfloat16(), BF16),
    "double()": (lambda module: module.double(), torch.float64),
    "to(dtype)": (lambda module: module.to(BF16), BF16),
    "to(device, dtype)": (lambda module: module.to("cpu", BF16), BF16),
    "there and back": (lambda module: module.bfloat16().half().float(), torch.float32),
}


def build(*overrides: str) -> Transformer:
    return randomized(Transformer(tiny_config(*SMALL, *overrides).model)).eval()


def check_conversion(convert: Callable[[nn.Module], nn.Module], dtype: torch.dtype) -> None:
    """As part of another module."""
    model = build()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert set(before) == {"cos", "sin"} | {
        f"{block}.ffn.router.e_score_correction_bias"
        for block in ("blocks.1", "mtp.0.block", "mtp.1.block")
    }
    assert all(not torch.equal(buffer, buffer.bfloat16()) for buffer in before.values())
    convert(nn.Sequential(nn.ModuleDict({"model": model})))
    assert {p.dtype for p in model.parameters()} == {dtype}
    torch.testing.assert_close(dict(model.named_buffers()), before, rtol=0, atol=0)


@pytest.mark.parametrize(("convert", "dtype"), CONVERSIONS.values(), ids=CONVERSIONS)
def test_buffers_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
    convert: Callable[[nn.Module], nn.Module],
    dtype: torch.dtype,
) -> None:
    check_conversion(convert, dtype)
    monkeypatch.setattr(KeepsFloat32, "_apply", nn.Module._apply)
    with pytest.raises(AssertionError):
        check_conversion(convert, dtype)


def test_buffers_move_to_another_device_in_float32() -> None:
    model = build()
    shapes = [buffer.shape for buffer in model.buffers()]
    model.to("meta", BF16)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    assert {p.dtype for p in model.parameters()} == {BF16}
    assert [(b.shape, b.dtype) for b in model.buffers()] == [(s, torch.float32) for s in shapes]


@torch.no_grad()
def decoded(model: Transformer, tokens: Tensor) -> Tensor:
    """Logits of a ragged prompt, a cut and chunks, at the positions of `tokens`."""
    cache = model.new_cache(2, model.cfg.max_seq_len)
    dtypes = {tensor.dtype for layer in cache.layers for tensor in layer.tensors}
    assert dtypes == {BF16}
    first = model(tokens[:, :5], cache=cache).logits
    cache.truncate([5, 2])
    model(torch.stack((tokens[0, 5:9], tokens[1, 2:6])), cache=cache)
    cache.truncate([5, 5])
    rest = [model(chunk, cache=cache).logits for chunk in tokens[:, 5:].split(3, dim=1)]
    return torch.cat((first, *rest), dim=1)


def apart(left: Tensor, right: Tensor) -> float:
    """Of the median position: where scores tie, routing flips and a few positions differ much."""
    return float((left - right).float().square().mean(-1).sqrt().median())


@torch.no_grad()
@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16", "autocast"])
@each_attention
def test_decoding_in_bfloat16_errs_no_more_than_one_run(
    attention: tuple[str, ...], autocast: bool
) -> None:
    """Cached logits err as uncached bfloat16 ones do against float32, not by more."""
    model = build(*attention)
    tokens = random_tokens(model.cfg, 2, model.cfg.max_seq_len)
    exact = model(tokens).logits
    if not autocast:
        model.bfloat16()
    with torch.autocast("cpu", BF16, enabled=autocast):
        uncached, cached = model(tokens).logits, decoded(model, tokens)
    assert cached.dtype == uncached.dtype == BF16
    usual = apart(uncached, exact)
    assert 0 < usual < 0.1 * exact.std()
    assert apart(cached, uncached) < 1.5 * usual
    assert apart(cached, exact) < 1.5 * usual
