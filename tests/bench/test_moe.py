"""Suite `moe` with few tokens: every figure comes out, and layers that differ stop it."""

import pytest
import torch

from mla_lm.bench import moe


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moe, "N_TOKENS", 90)
    monkeypatch.setattr(moe, "ROUNDS", 1)


def test_every_figure_comes_out() -> None:
    rows = {row.name: row for row in moe.run()}
    assert len(rows) == 2 * 8
    assert all(row.value > 0 for row in rows.values())
    for number_format, goal in (("float32", ">= 1.3"), ("bfloat16", ">= 4.5")):
        assert rows[f"moe layer, {number_format}: transformers / ours"].goal == goal


def test_layers_that_differ_are_found() -> None:
    ours, _, peers = moe.sides()
    x = torch.randn(1, 90, moe.DIM)
    moe.assert_equal(ours, peers["eager"], x, within=1e-5)
    with torch.no_grad():
        peers["eager"].module.experts.down_proj[3] *= 1.01
    with pytest.raises(AssertionError, match="differ"):
        moe.assert_equal(ours, peers["eager"], x, within=1e-5)


def test_a_buffer_kept_twice_counts_once_and_weights_not_at_all() -> None:
    layer = torch.nn.Linear(7, 5)
    side = moe.Side(layer, lambda x: layer(x) * layer(x).sigmoid())
    x = torch.randn(3, 7)
    kept = moe.saved_bytes(side, x)  # the input, one product, the sigmoid
    assert kept == 4 * (3 * 7 + 3 * 5 + 3 * 5)
