"""Runs on other corpora and tokenizers than the default, from start to evaluation."""

import json
from pathlib import Path

import pytest

from mla_lm import load_checkpoint
from mla_lm.data import Tokenizer
from tests.conftest import one_line
from tests.runs.conftest import Run, logged, short_run, train_here, write_corpus
from tests.runs.test_eval import evaluate_here


def corpus_free(place: Path) -> list[str]:
    """The overrides of a short run without those that name its text."""
    words = ("data=", "data.path=", "data.tokenizer")
    return [word for word in short_run(place) if not word.startswith(words)]


def test_synthetic_answers_are_graded_in_training_and_evaluation(tmp_path: Path) -> None:
    words = ["data=synthetic", "data.task=copying", "data.n_documents=300"]
    train_here(*corpus_free(tmp_path), *words, f"run_dir={tmp_path / 'run'}")
    evaluate_here(f"ckpt={tmp_path / 'run'}")
    model, _, tokenizer = load_checkpoint(tmp_path / "run")
    assert (model.cfg.vocab_size, tokenizer.vocab_size) == (320, 257)  # bytes
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    last = [row for row in logged(tmp_path / "run") if "val/bpb" in row][-1]
    assert 0 <= metrics["val/exact_match"] <= 1
    for name in ("val/exact_match", "val/loss"):
        assert metrics[name] == pytest.approx(float(last[name]), rel=1e-5)


def test_masked_documents_train_and_evaluate_alike(trained: Run, tmp_path: Path) -> None:
    """Evaluation masks as training did: it gives the value that was logged."""
    words = (*trained.overrides, "data.mask_documents=true", "trainer.limit_val_batches=1")
    train_here(*words, f"run_dir={tmp_path / 'run'}")
    evaluate_here(f"ckpt={tmp_path / 'run'}", "limit=1", "batch_size=4")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    rows, plain = logged(tmp_path / "run"), logged(trained.folder)
    last = [row for row in rows if "val/bpb" in row][-1]
    assert metrics["val/bpb"] == pytest.approx(float(last["val/bpb"]), rel=1e-5)
    assert metrics["mtp/acceptance_1"] == pytest.approx(float(last["mtp/acceptance"]))
    masked, unmasked = ([row["train/ce"] for row in r if "train/ce" in row] for r in (rows, plain))
    assert len(masked) == len(unmasked)
    assert masked != unmasked


def test_an_existing_tokenizer_is_used_and_kept(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "text")
    texts = [path.read_text() for path in folder.iterdir()]
    existing = Tokenizer.train(texts, vocab_size=270, end_of_text="<eos>")
    (tmp_path / "tokenizer.json").write_text(existing.json)
    words = [
        "data=text",
        f"data.path={folder}",
        "data/tokenizer=pretrained",
        f"data.tokenizer.path={tmp_path / 'tokenizer.json'}",
        "data.tokenizer.end_of_text='<eos>'",
    ]
    train_here(*corpus_free(tmp_path), *words, f"run_dir={tmp_path / 'run'}")
    (tmp_path / "tokenizer.json").unlink()
    model, _, tokenizer = load_checkpoint(tmp_path / "run")
    assert (model.cfg.vocab_size, tokenizer.vocab_size) == (320, 270)
    assert tokenizer.end_of_text == existing.end_of_text


def test_a_vocabulary_too_small_for_the_tokenizer_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train((), vocab_size=257, end_of_text="<|endoftext|>")
    (tmp_path / "tokenizer.json").write_text(tokenizer.json)
    words = ["data/tokenizer=pretrained", f"data.tokenizer.path={tmp_path / 'tokenizer.json'}"]
    line = one_line(lambda: train_here("model=nano", *words, "model.vocab_size=256"))
    assert line.startswith("model.vocab_size=256: must be at least data.tokenizer.vocab_size=257")
