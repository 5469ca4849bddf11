"""Suite `quality` for seconds, and the dense models it compares with."""

from pathlib import Path

import pytest
import torch

from mla_lm.bench import baseline, quality, recipe
from tests.processes import environment
from tests.runs.conftest import write_corpus


def test_the_dense_model_is_causal_and_has_its_parameters() -> None:
    shape = baseline.Shape(vocab_size=50, seq_len=12, dim=24, n_layers=2, n_heads=3)
    model = baseline.DenseModel(shape)
    per_block = 12 * 24 * 24 + 2 * 24
    assert sum(p.numel() for p in model.parameters()) == (50 + 12) * 24 + 2 * per_block + 24
    tokens = torch.randint(50, (2, 12))
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 50
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_only_matrices_decay() -> None:
    model = baseline.DenseModel(baseline.Shape(vocab_size=50, seq_len=12, dim=24, n_heads=3))
    groups = baseline.optimizer(model, 1e-3).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_the_recipes_rate_rises_and_falls() -> None:
    rates = [recipe.rate(step) for step in range(recipe.STEPS)]
    assert rates[0] == pytest.approx(recipe.LR / recipe.WARM_UP)
    assert max(rates) == rates[recipe.WARM_UP - 1] == recipe.LR
    assert rates[recipe.WARM_UP :] == sorted(rates[recipe.WARM_UP :], reverse=True)
    assert rates[-1] == pytest.approx(recipe.LAST_LR, rel=1e-3)


@pytest.mark.slow
def test_both_train_for_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    rows = {row.name: row.value for row in quality.run(0.1)}
    assert rows["default run: minutes of training"] < 0.5
    for side in ("default run", "dense model"):
        assert 1 < rows[f"{side}: validation"] < 6
        assert rows[f"{side}: tokens"] > 0


@pytest.mark.slow
def test_the_recipe_and_ours_in_a_part_of_its_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipe, "STEPS", 150)
    write_corpus(tmp_path / "text")
    text = tmp_path / "text.txt"
    files = sorted((tmp_path / "text").iterdir())
    text.write_text("\n\n".join(file.read_text() for file in files) * 20)
    rows = {row.name: row for row in recipe.run(text)}
    theirs = rows["nanoGPT's recipe: validation"].value
    assert 0 < theirs < 8
    for share in recipe.SHARES:
        assert rows[f"ours, {share} of its time: training"].value > 0
        validation = rows[f"ours, {share} of its time: validation"]
        assert 0 < validation.value < 8
        assert validation.goal == f"<= {theirs:.3f}"
