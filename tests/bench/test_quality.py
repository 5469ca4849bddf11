"""Suite `quality` with few steps: both sides train for their time on the same text."""

from pathlib import Path

import pytest

from mla_lm import load_config
from mla_lm.bench import quality
from tests.runs.conftest import write_corpus


def test_the_peer_is_gpt2_in_the_sizes_asked_for() -> None:
    model = quality.gpt2({"n_embd": 24, "n_layer": 2, "n_head": 3}, vocab_size=50, seq_len=12)
    per_block = 12 * 24 * 24 + 13 * 24  # with biases
    assert sum(p.numel() for p in model.parameters()) == (50 + 12) * 24 + 2 * per_block + 2 * 24


def test_the_cpu_recipe_is_nanogpts() -> None:
    cfg = load_config([*quality.CPU_RECIPE, "data.path=my.txt"])
    assert (cfg.data.seq_len, cfg.data.batch_size, quality.N_STEPS) == (64, 12, 2000)
    optim = cfg.optim
    assert (optim.lr, optim.betas, optim.weight_decay) == (1e-3, (0.9, 0.99), 0.1)
    assert (optim.schedule, optim.warmup_fraction, optim.min_lr_ratio) == ("cosine", 0.05, 0.1)


@pytest.mark.slow
def test_both_sides_train_for_their_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quality, "N_STEPS", 150)
    write_corpus(tmp_path / "text")
    files = sorted((tmp_path / "text").iterdir())
    Path("text.txt").write_text("\n\n".join(file.read_text() for file in files) * 20)
    for text, sides in (
        ("text.txt", ("nanoGPT's CPU recipe", "ours, a third of its time")),
        (None, ("default run", "GPT-2")),
    ):
        rows = {row.name: row.value for row in quality.run(0.1, text)}
        for side in sides:
            assert 0 < rows[f"{side}: validation"] < 8
            assert 0 < rows[f"{side}: training"] < 0.5
            assert rows[f"{side}: tokens"] > 0
