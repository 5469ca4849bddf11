"""Metrics of a checkpoint: independent of batching, equal to what training logged."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mla_lm import Transformer, cli, load_checkpoint
from mla_lm.config import EvalConfig
from mla_lm.data import EvalLoader, prepare
from mla_lm.data.corpora import scan
from mla_lm.errors import UserError
from mla_lm.evaluation import evaluate
from mla_lm.model import ModelOutput
from tests.conftest import random_tokens, randomized, tiny_config
from tests.processes import run
from tests.runs.conftest import STEPS, Run, checkpoint, content, copied, logged

NAMES = {
    "val/loss",
    "val/perplexity",
    "val/bpb",
    "mtp/acceptance_1",
    "moe/max_violation",
    "moe/dead_experts",
}


@pytest.fixture(scope="module")
def evaluated(trained: Run) -> tuple[dict[str, Any], str]:
    """`metrics.json` and the console of `eval.py` on the run."""
    words = (f"ckpt={trained.folder}", "precision=32-true")
    result = run("eval.py", *words, cwd=trained.folder)
    assert result.returncode == 0, result.stderr
    return json.loads((trained.folder / "metrics.json").read_text()), result.stdout


def evaluate_here(*overrides: str) -> None:
    """`python eval.py OVERRIDES` without the process."""
    import eval as application

    words = ["precision=32-true", *overrides]
    application.evaluate(cli.validate(EvalConfig, cli.compose("eval", words)), words)


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
    metrics, _ = evaluate(model, batches, torch.from_numpy(tokenizer.byte_lengths))
    for name in ("val/loss", "val/bpb"):
        assert metrics[name] == pytest.approx(evaluated[0][name], rel=1e-6)


def test_limit_takes_that_many_batches(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(trained.folder, tmp_path / "run")
    model, cfg, tokenizer = load_checkpoint(folder)
    batches = list(EvalLoader(prepare(cfg.data).val, seq_len=32, batch_size=2))
    evaluate_here(f"ckpt={folder}", "limit=1", "batch_size=2")
    assert f"1 of {len(batches)} batches" in capsys.readouterr().out
    first, _ = evaluate(model, batches[:1], torch.from_numpy(tokenizer.byte_lengths))
    written = json.loads((folder / "metrics.json").read_text())
    assert written["val/bpb"] == pytest.approx(first["val/bpb"], rel=1e-5)


@pytest.mark.parametrize("held_out", [False, True], ids=["training text", "held-out text"])
def test_changed_corpus_is_refused(trained: Run, tmp_path: Path, held_out: bool) -> None:
    place = copied(trained.folder.parent, tmp_path / "moved")
    path = checkpoint(place / "run", STEPS)
    stored = content(path)
    stored["mla_lm"]["config"]["data"]["path"] = str(place / "text")
    torch.save(stored, path)
    evaluate_here(f"ckpt={path}")

    _, cfg, _ = load_checkpoint(path)
    validation = scan(cfg.data).validation
    changed = next(p for p in (place / "text").iterdir() if (p.name in validation) == held_out)
    changed.write_text(changed.read_text() + "def changed(): pass\n" * 9)
    (place / "run" / "metrics.json").unlink()
    with pytest.raises(UserError, match="corpus") as caught:
        evaluate_here(f"ckpt={path}")
    assert len(str(caught.value).splitlines()) == 1
    assert not (place / "run" / "metrics.json").exists()


def model_and_batches(*overrides: str) -> tuple[Transformer, list[Tensor], Tensor]:
    cfg = tiny_config(*overrides).model
    model = randomized(Transformer(cfg)).eval()
    batches = [random_tokens(cfg, 3, 17), random_tokens(cfg, 1, 9)]
    return model, batches, torch.arange(cfg.vocab_size) % 5


def drafts_shifted_by(
    extra: int, forward: Callable[..., ModelOutput]
) -> Callable[..., ModelOutput]:
    """MTP states of every depth k that are the main model's own, k + extra positions later."""

    def shifted(tokens: Tensor) -> ModelOutput:
        out = forward(tokens)
        depths = range(1, len(out.mtp) + 1)
        mtp = tuple(out.hidden.roll(-extra, dims=1)[:, depth:] for depth in depths)
        return out._replace(mtp=mtp)

    return shifted


@pytest.mark.parametrize(("extra", "accepted"), [(0, True), (1, False), (-1, False)])
def test_acceptance_is_one_exactly_for_drafts_of_the_right_token(
    extra: int, accepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches, byte_lengths = model_and_batches("model.mtp_depth=2")
    monkeypatch.setattr(model, "forward", drafts_shifted_by(extra, model.forward))
    metrics, _ = evaluate(model, batches, byte_lengths)
    for depth in (1, 2):
        assert (metrics[f"mtp/acceptance_{depth}"] == 1.0) == accepted


def test_acceptance_by_hand() -> None:
    model, batches, byte_lengths = model_and_batches("model.mtp_depth=2")
    agreed, drafted = [0, 0], [0, 0]
    for batch in batches:
        out = model(batch[:, :-1])
        for row in range(batch.shape[0]):
            for depth in (1, 2):
                for i in range(batch.shape[1] - 1 - depth):
                    draft = model.lm_head(out.mtp[depth - 1][row, i]).argmax()
                    choice = out.logits[row, i + depth].argmax()
                    agreed[depth - 1] += int(draft == choice)
                    drafted[depth - 1] += 1
    metrics, _ = evaluate(model, batches, byte_lengths)
    for depth in (1, 2):
        expected = agreed[depth - 1] / drafted[depth - 1]
        assert metrics[f"mtp/acceptance_{depth}"] == pytest.approx(expected)


def test_uniform_model_scores_the_logarithm_of_the_vocabulary() -> None:
    model, batches, byte_lengths = model_and_batches()
    torch.nn.init.zeros_(model.lm_head.weight)
    metrics, _ = evaluate(model, batches, byte_lengths)
    targets = torch.cat([batch[:, 1:].flatten() for batch in batches])
    vocab_size = model.cfg.vocab_size
    bits = math.log2(vocab_size) * targets.numel() / int(byte_lengths[targets].sum())
    assert metrics["val/loss"] == pytest.approx(math.log(vocab_size), rel=1e-6)
    assert metrics["val/perplexity"] == pytest.approx(vocab_size, rel=1e-5)
    assert metrics["val/bpb"] == pytest.approx(bits, rel=1e-6)


def test_evaluation_leaves_the_model_alone() -> None:
    model, batches, byte_lengths = model_and_batches()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, batches, byte_lengths)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_dense_model_without_mtp_has_only_its_own_metrics() -> None:
    model, batches, byte_lengths = model_and_batches("model/ffn=dense", "model.mtp_depth=0")
    metrics, load = evaluate(model, batches, byte_lengths)
    assert set(metrics) == {"val/loss", "val/perplexity", "val/bpb"}
    assert load is None
