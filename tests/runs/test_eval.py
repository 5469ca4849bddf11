"""Metrics of a checkpoint: independent of batching, equal to what training logged."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from mla_lm.config.words import DATA, LOGGER
from torch import Tensor

from mla_lm import load_checkpoint
from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.config import EvalConfig, RunConfig
from mla_lm.config import compose as cli
from mla_lm.data import Annotator, EvalLoader, Tokenizer, prepare
from mla_lm.data.corpora import open_corpus
from mla_lm.data.split import place
from mla_lm.errors import UserError
from mla_lm.evaluation import evaluate
from tests.processes import run
from tests.runs.conftest import STEPS, Run, checkpoint, content, copied, logged

NAMES = {
    "val/loss",
    "val/perplexity",
    "val/bpb",
    "mtp/acceptance_1",
    "moe/max_violation",
    "moe/load_entropy",
    "moe/dead_experts",
}


@pytest.fixture(scope="module")
def evaluated(trained: Run) -> tuple[dict[str, Any], str]:
    """`metrics.json` and the console of `eval.py` on the run."""
    words = (f"ckpt={trained.folder}", "precision=32-true")
    result = run("eval.py", *words, cwd=trained.folder)
    assert result.returncode == 0, result.stderr
    return json.loads((trained.folder / "metrics.json").read_text()), result.stdout


def counting(cfg: RunConfig, tokenizer: Tokenizer) -> tuple[Tensor, Annotator]:
    """What `evaluate` needs besides model and batches."""
    return torch.from_numpy(tokenizer.byte_lengths), Annotator(cfg.data, tokenizer)


def evaluate_here(*overrides: str) -> None:
    """`python eval.py OVERRIDES` without the process."""
    import eval as application

    words = ["precision=32-true", *overrides]
    own = [word for word in words if not word.startswith((*DATA, *LOGGER))]
    application.evaluate(cli.validate(EvalConfig, cli.compose("eval", own)), words)


def test_metrics_are_written_and_shown(evaluated: tuple[dict[str, Any], str]) -> None:
    metrics, stdout = evaluated
    assert set(metrics) >= NAMES
    for name in NAMES:
        assert math.isfinite(metrics[name])
        assert any(name in line and f"{metrics[name]:.4f}" in line for line in stdout.splitlines())


def test_expert_load_counts_every_choice(
    evaluated: tuple[dict[str, Any], str], trained: Run
) -> None:
    _, cfg, _ = load_checkpoint(trained.folder)
    n_targets = len(prepare(cfg.data).val) - 1
    n_rows = math.ceil(n_targets / cfg.data.seq_len)
    load = torch.tensor(evaluated[0]["moe/load"])
    assert load.shape == (2, 4)
    assert load.sum(dim=1).tolist() == [2 * n_targets, 2 * (n_targets - n_rows)]


def test_evaluation_equals_what_training_logged(
    evaluated: tuple[dict[str, Any], str], trained: Run
) -> None:
    last = [row for row in logged(trained.folder) if "val/bpb" in row][-1]
    for name in ("val/loss", "val/bpb", "val/perplexity"):
        assert evaluated[0][name] == pytest.approx(float(last[name]), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batch_size_does_not_change_the_metrics(
    evaluated: tuple[dict[str, Any], str], trained: Run, batch_size: int
) -> None:
    model, cfg, tokenizer = load_checkpoint(trained.folder)
    batches = EvalLoader(prepare(cfg.data).val, seq_len=32, batch_size=batch_size)
    metrics = evaluate(model, batches, *counting(cfg, tokenizer)).metrics
    for name in ("val/loss", "val/bpb"):
        assert metrics[name] == pytest.approx(evaluated[0][name], rel=1e-6)


def test_a_longer_context_has_metrics_of_its_own(
    evaluated: tuple[dict[str, Any], str], trained: Run
) -> None:
    evaluate_here(f"ckpt={trained.folder}", "context=96")
    longer = json.loads((trained.folder / "metrics-context-96.json").read_text())
    assert longer["seq_len"] == 96
    assert math.isfinite(longer["val/loss"])
    assert longer["val/loss"] != evaluated[0]["val/loss"]
    assert json.loads((trained.folder / "metrics.json").read_text()) == evaluated[0]


def test_limit_takes_that_many_batches(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(trained.folder, tmp_path / "run")
    model, cfg, tokenizer = load_checkpoint(folder)
    batches = list(EvalLoader(prepare(cfg.data).val, seq_len=32, batch_size=2))
    evaluate_here(f"ckpt={folder}", "limit=1", "batch_size=2")
    assert f"1 of {len(batches)} batches" in capsys.readouterr().out
    first = evaluate(model, batches[:1], *counting(cfg, tokenizer)).metrics
    written = json.loads((folder / "metrics.json").read_text())
    assert written["val/bpb"] == pytest.approx(first["val/bpb"], rel=1e-5)


@pytest.mark.parametrize("held_out", [False, True], ids=["training text", "held-out text"])
def test_changed_corpus_is_refused(trained: Run, tmp_path: Path, held_out: bool) -> None:
    moved = copied(trained.folder.parent, tmp_path / "moved")
    path = checkpoint(moved / "run", STEPS)
    stored = content(path)
    stored["mla_lm"]["config"]["data"]["path"] = str(moved / "text")
    checkpoint_file.write(path, stored)
    evaluate_here(f"ckpt={path}")

    _, cfg, _ = load_checkpoint(path)
    threshold = prepare(cfg.data).manifest["threshold"]
    keys = [document.key for document in open_corpus(cfg.data).train()]
    name = next(key.decode() for key in keys if (place(key) < threshold) == held_out)
    changed = moved / "text" / name
    changed.write_text(changed.read_text() + "def changed(): pass\n" * 9)
    (moved / "run" / "metrics.json").unlink()
    with pytest.raises(UserError, match="corpus") as caught:
        evaluate_here(f"ckpt={path}")
    assert len(str(caught.value).splitlines()) == 1
    assert not (moved / "run" / "metrics.json").exists()
