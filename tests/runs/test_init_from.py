"""Runs that start with the weights of another, or of a Hugging Face folder: `init_from=PATH`.

They may extend its context, and change nothing else of its model.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import eval as application
from mla_lm import load_checkpoint
from mla_lm.ablation.runs import read_runs, runs_below
from mla_lm.checkpoint.init_from import EXTEND
from mla_lm.commands import export, import_
from mla_lm.config import EvalConfig, YarnConfig
from mla_lm.config.compose import compose, validate
from mla_lm.evaluation.subject import load_subject
from tests.conftest import one_line
from tests.runs.conftest import Run, checkpoint, logged, train_here

LONGER = (EXTEND, "data.seq_len=80")  # of 32
STILL = ("optim.lr=1e-9", "optim.weight_decay=0.0")  # hardly any change


def begun(trained: Run, origin: Path, folder: Path, *more: str) -> list[str]:
    """Overrides of a run with the weights of `origin`."""
    words = [w for w in trained.overrides if not w.startswith(("model", "data.tokenizer"))]
    return [*words, f"init_from={origin}", f"run_dir={folder}", *more]


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6, msg=name)


@pytest.fixture(scope="module")
def extended(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step on longer rows, then another, resumed by the same command."""
    folder = tmp_path_factory.mktemp("extended") / "run"
    words = begun(trained, trained.folder, folder, *LONGER, *STILL, "resume=auto")
    train_here(*words, "trainer.max_steps=1")
    train_here(*words, "trainer.max_steps=2")
    return folder


@pytest.fixture(scope="module")
def imported(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run after its way through a Hugging Face folder, alone in a folder."""
    place = tmp_path_factory.mktemp("interop")
    words = [w for w in trained.overrides if w.startswith("data") and "tokenizer" not in w]
    export.run([f"ckpt={trained.folder}", f"out={place / 'theirs'}"])
    import_.run([f"src={place / 'theirs'}", f"out={place / 'ours'}", *words])
    shutil.rmtree(place / "theirs")
    return place / "ours"


def test_yarn_stretches_the_positions_and_keeps_the_weights(trained: Run, extended: Path) -> None:
    before, cfg, _ = load_checkpoint(trained.folder)
    for step in (1, 2):
        after, found, _ = load_checkpoint(checkpoint(extended, step))
        assert found.model == cfg.model.extended(80)
        assert_same_weights(before, after)
    assert isinstance(found.model.rope, YarnConfig)
    assert (found.model.rope.factor, found.model.max_seq_len) == (2.5, 80)
    stretched = load_checkpoint(trained.folder, context=80)[0]
    torch.testing.assert_close(after.cos, stretched.cos)
    assert not torch.equal(after.cos[:32], before.cos)
    assert float(logged(extended)[0]["train/ce"]) < 4.5


def test_a_resumed_one_is_reported(extended: Path) -> None:
    runs = read_runs(runs_below(extended.parent))
    assert runs
    assert runs.table.status.to_list() == ["finished"]


def test_an_extended_run_is_scored_on_another_text(extended: Path) -> None:
    cfg = validate(EvalConfig, compose("eval", [f"ckpt={extended}"]))
    subject = load_subject(cfg, data_overrides=["data=stdlib"])
    assert subject.run.data.kind == "stdlib"
    assert subject.model.cfg.max_seq_len == 80


def test_it_is_extended_again(extended: Path, trained: Run, tmp_path: Path) -> None:
    longer = (EXTEND, "data.seq_len=96", "trainer.max_steps=1")
    train_here(*begun(trained, extended, tmp_path / "run", *longer))
    rope = load_checkpoint(tmp_path / "run")[1].model.rope
    assert isinstance(rope, YarnConfig)
    assert (rope.original_max_seq_len, rope.factor) == (32, 3.0)


def metrics_of(folder: Path) -> dict[str, Any]:
    overrides = [f"ckpt={folder}", "precision=32-true"]
    application.evaluate(validate(EvalConfig, compose("eval", overrides)), overrides)
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return {key: value for key, value in metrics.items() if key not in ("ckpt", "step", "sha256")}


def test_imported_weights_score_the_same(trained: Run, imported: Path, tmp_path: Path) -> None:
    """The tokenizer is taken from the checkpoint."""
    moved = Path(shutil.copytree(imported, tmp_path / "moved"))
    (moved / "tokenizer.json").unlink()
    assert metrics_of(moved) == metrics_of(trained.folder)


def test_cards_say_where_weights_come_from(extended: Path, imported: Path, tmp_path: Path) -> None:
    for origin, line in ((extended, EXTEND), (imported, "the weights were imported")):
        export.run([f"ckpt={origin}", f"out={tmp_path / origin.name}"])
        assert line in (tmp_path / origin.name / "README.md").read_text()


def test_training_goes_on_where_the_origin_is_gone(
    trained: Run, imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare, run = tmp_path / "weights.ckpt", tmp_path / "run"
    shutil.copy(checkpoint(imported, 0), bare)
    words = begun(trained, bare, run, *STILL, "resume=auto")
    train_here(*words, "trainer.max_steps=1")
    assert f"starts with the weights of {bare}" in capsys.readouterr().out
    train_here(*words, "trainer.max_steps=2")
    assert "resumed " in capsys.readouterr().out
    bare.unlink()
    train_here("trainer.max_steps=3", f"run_dir={run}", "resume=auto")
    before, cfg, tokenizer = load_checkpoint(imported)
    after, found, same = load_checkpoint(run)
    assert (found.model, same.json) == (cfg.model, tokenizer.json)
    assert_same_weights(before, after)
    (first, *_) = logged(run)
    assert float(first["train/ce"]) < 4.5 < float(logged(trained.folder)[0]["train/ce"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("data.seq_len=80",), "data.seq_len=80: must be at most model.max_seq_len=32"),
        ((EXTEND,), f"data.seq_len=32: {EXTEND} extends init_from="),
        ((EXTEND, "data.seq_len=16"), "beyond its 32 tokens; give more, or leave it out"),
        ((*LONGER, "model.rope.factor=4"), "model.rope.factor=4: the model and the tokenizer"),
        ((*LONGER, "model.max_seq_len=99"), "model.max_seq_len=99: the model and the tokenizer"),
        (("model/rope=plain",), "model/rope=plain: the model and the tokenizer are those of"),
    ],
)
def test_anything_else_is_refused(
    words: tuple[str, ...], said: str, trained: Run, tmp_path: Path
) -> None:
    asked = begun(trained, trained.folder, tmp_path / "run", *words)
    assert said in one_line(lambda: train_here(*asked))
    assert not (tmp_path / "run").exists()


def test_weights_alone_are_not_resumed(imported: Path, tmp_path: Path) -> None:
    said = one_line(lambda: train_here(f"resume={imported}", f"run_dir={tmp_path / 'run'}"))
    assert "holds weights only; start a run with them by init_from=" in said
