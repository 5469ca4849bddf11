"""The figures of scaling, from real runs of a tiny model."""

from pathlib import Path

import pytest

from mla_lm.bench import scale
from tests.conftest import TINY


@pytest.mark.slow
def test_every_figure_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "ROUNDS", 1)
    monkeypatch.setattr(scale, "STEPS", 12)
    (tmp_path / "text.txt").write_text("\n".join(f"a {n} of words" for n in range(9_000)))
    of_text = (f"data.path={tmp_path / 'text.txt'}", f"data.cache_dir={tmp_path / 'cache'}")
    words = ("data=text", *of_text, *TINY[2:], "model=nano", "data.seq_len=32")
    rows = {row.name: row.value for row in scale.run(*words)}
    assert len(rows) == 5
    assert all(value > 0 for value in rows.values())
    one, two = rows["default run: one process"], rows["default run: ddp, two processes"]
    assert rows["efficiency: ddp, two processes"] == pytest.approx(50 * two / one)
