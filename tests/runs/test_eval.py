"""Metrics of a checkpoint: independent of batching, equal to what training logged."""

import json
import math
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mla_lm.config.words import DATA, LOGGER
from torch import Tensor

from mla_lm import Transformer, load_checkpoint
from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.config import EvalConfig, RunConfig
from mla_lm.config import compose as cli
from mla_lm.data import Annotator, EvalLoader, Tokenizer, prepare
from mla_lm.data.batch import IGNORED
from mla_lm.data.corpora import open_corpus
from mla_lm.data.split import hash_position
from mla_lm.errors import UserError
from mla_lm.evaluation import evaluate
from mla_lm.model import ModelOutput
from mla_lm.objective.metrics import exact_matches, loss_sums
from tests.conftest import random_tokens, randomized, tiny_config
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
    name = next(key.decode() for key in keys if (hash_position(key) < threshold) == held_out)
    changed = moved / "text" / name
    changed.write_text(changed.read_text() + "def changed(): pass\n" * 9)
    (moved / "run" / "metrics.json").unlink()
    with pytest.raises(UserError, match="corpus") as caught:
        evaluate_here(f"ckpt={path}")
    assert len(str(caught.value).splitlines()) == 1
    assert not (moved / "run" / "metrics.json").exists()


@cache
def plain() -> Annotator:
    """Every token counts, documents are not masked."""
    tokenizer = Tokenizer.train((), vocab_size=257, end_of_text="<|endoftext|>")
    return Annotator(tiny_config().data, tokenizer)


def model_and_batches(*overrides: str) -> tuple[Transformer, list[Tensor], Tensor]:
    cfg = tiny_config(*overrides).model
    model = randomized(Transformer(cfg)).eval()
    batches = [random_tokens(cfg, 3, 17), random_tokens(cfg, 1, 9)]
    return model, batches, torch.arange(cfg.vocab_size) % 5


def drafts_shifted_by(
    extra: int, forward: Callable[..., ModelOutput]
) -> Callable[..., ModelOutput]:
    """MTP states of every depth k that are the main model's own, k + extra positions later."""

    def shifted(tokens: Tensor, documents: Tensor | None) -> ModelOutput:
        out = forward(tokens, documents=documents)
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
    metrics = evaluate(model, batches, byte_lengths, plain()).metrics
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
    metrics = evaluate(model, batches, byte_lengths, plain()).metrics
    for depth in (1, 2):
        expected = agreed[depth - 1] / drafted[depth - 1]
        assert metrics[f"mtp/acceptance_{depth}"] == pytest.approx(expected)


def test_uniform_model_scores_the_logarithm_of_the_vocabulary() -> None:
    model, batches, byte_lengths = model_and_batches()
    torch.nn.init.zeros_(model.lm_head.weight)
    metrics = evaluate(model, batches, byte_lengths, plain()).metrics
    targets = torch.cat([batch[:, 1:].flatten() for batch in batches])
    vocab_size = model.cfg.vocab_size
    bits = math.log2(vocab_size) * targets.numel() / int(byte_lengths[targets].sum())
    assert metrics["val/loss"] == pytest.approx(math.log(vocab_size), rel=1e-6)
    assert metrics["val/perplexity"] == pytest.approx(vocab_size, rel=1e-5)
    assert metrics["val/bpb"] == pytest.approx(bits, rel=1e-6)


def test_evaluation_leaves_the_model_alone() -> None:
    model, batches, byte_lengths = model_and_batches()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, batches, byte_lengths, plain())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_dense_model_without_mtp_has_only_its_own_metrics() -> None:
    model, batches, byte_lengths = model_and_batches("model/ffn=dense", "model.mtp_depth=0")
    metrics, load, *_ = evaluate(model, batches, byte_lengths, plain())
    assert set(metrics) == {"val/loss", "val/perplexity", "val/bpb"}
    assert load is None


def test_exact_match_by_hand() -> None:
    """Answers of two and one tokens in the first row, of one at each end of the second."""
    i = IGNORED
    labels = torch.tensor([[i, 3, 4, i, 2], [1, i, i, i, 5]])
    guesses = torch.tensor([[9, 3, 4, 9, 2], [1, 9, 9, 9, 6]])
    for wrong in ([], [(0, 1)], [(0, 1), (0, 2)], [(0, 4)], [(1, 0), (0, 4)]):
        guessed = guesses.clone()
        for row, column in wrong:
            guessed[row, column] = 7
        answers = {(0, 1) if at == (0, 2) else at for at in wrong}
        right, n_answers = exact_matches(F.one_hot(guessed, 11).float(), labels)
        assert (int(right), int(n_answers)) == (3 - len(answers), 4)


def test_ignored_labels_do_not_count() -> None:
    logits, labels = torch.randn(2, 5, 11), torch.randint(11, (2, 5))
    labels[0, :3] = labels[1, 4] = IGNORED
    nats, tokens, n_bytes, *_ = loss_sums(logits, labels, torch.arange(11)).tolist()
    kept = labels != IGNORED
    expected = F.cross_entropy(logits[kept], labels[kept], reduction="sum")
    assert nats == pytest.approx(float(expected), rel=1e-6)
    assert (tokens, n_bytes) == (6, int(labels[kept].sum()))


def test_acceptance_counts_drafts_inside_a_document_only() -> None:
    model, batches, byte_lengths = model_and_batches("model.mtp_depth=2")
    cfg = tiny_config("data.mask_documents=true").data
    annotate = Annotator(cfg, Tokenizer.train((), vocab_size=257, end_of_text="<|endoftext|>"))
    for batch in batches:
        batch[:, 4::5] = annotate.end_of_text
    masked = evaluate(model, batches, byte_lengths, annotate).metrics
    agreed, drafted = [0, 0], [0, 0]
    for tokens in batches:
        batch = annotate(tokens)
        out = model(batch.inputs, documents=batch.input_documents)
        assert batch.documents is not None
        for depth in (1, 2):
            drafts = model.lm_head(out.mtp[depth - 1]).argmax(dim=-1)
            for row, i in product(range(len(tokens)), range(drafts.shape[1])):
                if batch.documents[row, i] == batch.documents[row, i + depth + 1]:
                    agreed[depth - 1] += int(drafts[row, i] == out.logits[row, i + depth].argmax())
                    drafted[depth - 1] += 1
    for depth in (1, 2):
        assert masked[f"mtp/acceptance_{depth}"] == agreed[depth - 1] / drafted[depth - 1]
