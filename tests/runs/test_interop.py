"""Out to Hugging Face and back, then evaluated, sampled and trained on, as users do it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import eval as application
from mla_lm import load_checkpoint
from mla_lm.checkpoint.record import newest
from mla_lm.commands import export
from mla_lm.config import EvalConfig
from mla_lm.config.compose import compose, validate
from tests.processes import run
from tests.reliability.runs import differences
from tests.runs.conftest import Run, checkpoint, content, logged, refusal, train_here


@pytest.fixture(scope="module")
def imported(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run after its way through a folder of Hugging Face's, by the commands."""
    place = tmp_path_factory.mktemp("interop")
    words = [word for word in trained.overrides if word.startswith("data")]
    words = [word for word in words if "tokenizer" not in word]
    for command in (
        ["export", f"ckpt={trained.folder}", "out=theirs"],
        ["import", "src=theirs", "out=ours", *words],
    ):
        result = run("-m", "mla_lm", *command, cwd=place)
        assert result.returncode == 0, result.stderr
        assert len(result.stdout.splitlines()) == 1
        assert result.stderr == ""
    return place / "ours"


def metrics_of(folder: Path) -> dict[str, Any]:
    overrides = [f"ckpt={folder}", "precision=32-true"]
    application.evaluate(validate(EvalConfig, compose("eval", overrides)), overrides)
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return {key: value for key, value in metrics.items() if key not in ("ckpt", "step", "sha256")}


def test_it_scores_the_same(trained: Run, imported: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(imported, tmp_path / "moved")
    (moved / "tokenizer.json").unlink()  # the checkpoint has it
    assert metrics_of(moved) == metrics_of(trained.folder)
    export.run([f"ckpt={imported}", f"out={imported.parent / 'again'}"])
    card = (imported.parent / "again" / "README.md").read_text()
    assert "the weights were imported" in card


def begun(trained: Run, imported: Path, folder: Path, *more: str) -> list[str]:
    """The words of a run that begins with the imported weights."""
    words = [w for w in trained.overrides if not w.startswith(("model", "data.tokenizer"))]
    return [*words, f"init_from={imported}", f"run_dir={folder}", *more]


def test_training_begins_with_its_weights(
    trained: Run, imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = begun(trained, imported, tmp_path / "run", "optim.lr=1e-9", "trainer.max_steps=1")
    train_here(*words, "optim.weight_decay=0.0")
    assert f"starts with the weights of {newest(imported)}" in capsys.readouterr().out
    before, cfg, tokenizer = load_checkpoint(imported)
    after, found, same = load_checkpoint(tmp_path / "run")
    assert (found.model, same.json) == (cfg.model, tokenizer.json)
    for (name, p), q in zip(before.named_parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6, msg=name)
    (first, *_) = logged(tmp_path / "run")
    assert float(first["train/ce"]) < 4.5 < float(logged(trained.folder)[0]["train/ce"])


def test_a_run_begun_so_resumes_bit_for_bit_wherever_it_came_from(
    trained: Run, imported: Path, tmp_path: Path
) -> None:
    """Without the file that it began with and its tokenizer: its checkpoints have all they need."""
    bare, whole, cut = tmp_path / "bare" / "weights.ckpt", tmp_path / "whole", tmp_path / "cut"
    bare.parent.mkdir()
    shutil.copy(checkpoint(imported, 0), bare)
    train_here(*begun(trained, imported, whole))
    train_here(*begun(trained, bare, cut, "checkpoint.keep=9"))
    for step in (10, 12):
        checkpoint(cut, step).unlink()
    shutil.rmtree(bare.parent)
    train_here(f"run_dir={cut}", "resume=auto")
    keys = ("state_dict", "optimizer_states", "loops")
    one, other = (content(checkpoint(folder, 12)) for folder in (whole, cut))
    assert differences({k: one[k] for k in keys}, {k: other[k] for k in keys}) == []


def test_what_imported_weights_cannot_do_is_refused(
    trained: Run, imported: Path, tmp_path: Path
) -> None:
    words = begun(trained, imported, tmp_path / "run", "model.dim=64")
    said = refusal(lambda: train_here(*words))
    assert "the model and the tokenizer are those of init_from=" in said
    assert not (tmp_path / "run").exists()
    said = refusal(lambda: train_here(f"resume={imported}", f"run_dir={tmp_path / 'run'}"))
    assert "init_from=" in said
