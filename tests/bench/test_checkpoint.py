"""The figures of suite `checkpoint` come out of real work; how large they are is not tested."""

import pytest

from mla_lm.bench import checkpoint


@pytest.mark.slow
def test_every_figure_is_measured() -> None:
    rows = {row.name: row.value for row in checkpoint.run()}
    assert all(value > 0 for value in rows.values())
    share = rows["write / training, every 200 steps"]
    assert share == pytest.approx(rows["write"] / rows["training step"] / 2, rel=0.5)
