import pytest

from tests.conftest import each_attention, tiny_config
from tests.test_golden import train


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("ffn", ["dense", "moe"])
@each_attention
def test_every_combination_learns(attention: tuple[str, ...], ffn: str, depth: int) -> None:
    cfg = tiny_config(*attention, f"model/ffn={ffn}", f"model.mtp_depth={depth}", "optim.lr=0.005")
    losses = train(cfg, steps=20)
    assert sum(losses[-3:]) / 3 < 0.8 * losses[0]
