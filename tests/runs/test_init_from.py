"""A run that begins with the weights of another may extend its context, and nothing else of it."""

from pathlib import Path

import pytest
import torch

from mla_lm import load_checkpoint
from mla_lm.checkpoint.init_from import EXTEND
from mla_lm.commands import export
from mla_lm.config import EvalConfig, YarnConfig
from mla_lm.config.compose import compose, validate
from mla_lm.evaluation.subject import load_subject
from tests.runs.conftest import Run, checkpoint, logged, refusal, train_here

LONGER = (EXTEND, "data.seq_len=80")  # of 32


def begun(trained: Run, folder: Path, *more: str) -> list[str]:
    words = [w for w in trained.overrides if not w.startswith(("model", "data.tokenizer"))]
    return [*words, f"init_from={trained.folder}", f"run_dir={folder}", *more]


@pytest.fixture(scope="module")
def extended(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step of hardly any change on longer rows, then another after a resume."""
    folder = tmp_path_factory.mktemp("extended") / "run"
    still = ("optim.lr=1e-9", "optim.weight_decay=0.0")
    train_here(*begun(trained, folder, *LONGER, *still, "trainer.max_steps=1"))
    train_here("trainer.max_steps=2", f"run_dir={folder}", "resume=auto")
    return folder


def test_yarn_stretches_the_positions_and_keeps_the_weights(trained: Run, extended: Path) -> None:
    before, cfg, _ = load_checkpoint(trained.folder)
    for step in (1, 2):
        after, found, _ = load_checkpoint(checkpoint(extended, step))
        assert found.model == cfg.model.extended(80)
        for (name, p), q in zip(before.named_parameters(), after.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-6, msg=name)
    assert isinstance(found.model.rope, YarnConfig)
    assert (found.model.rope.factor, found.model.max_seq_len) == (2.5, 80)
    stretched = load_checkpoint(trained.folder, context=80)[0]
    torch.testing.assert_close(after.cos, stretched.cos)
    assert not torch.equal(after.cos[:32], before.cos)
    assert float(logged(extended)[0]["train/ce"]) < 4.5


def test_an_extended_run_is_scored_on_another_text_after_a_resume(extended: Path) -> None:
    cfg = validate(EvalConfig, compose("eval", [f"ckpt={extended}"]))
    subject = load_subject(cfg, data_overrides=["data=stdlib"])
    assert subject.run.data.kind == "stdlib"
    assert subject.model.cfg.max_seq_len == 80


def test_the_card_says_that_the_context_was_extended(extended: Path, tmp_path: Path) -> None:
    export.run([f"ckpt={extended}", f"out={tmp_path / 'out'}"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "python train.py data=text" in card
    assert EXTEND in card


def test_one_command_begins_and_goes_on(trained: Run, tmp_path: Path) -> None:
    words = begun(trained, tmp_path / "run", "resume=auto")
    train_here(*words, "trainer.max_steps=1")
    train_here(*words, "trainer.max_steps=2")
    assert checkpoint(tmp_path / "run", 2).exists()
    assert len(logged(tmp_path / "run")) == len(logged(tmp_path / "run", version=1))


def test_it_is_extended_again(extended: Path, trained: Run, tmp_path: Path) -> None:
    words = begun(trained, tmp_path / "run", EXTEND, "data.seq_len=96", "trainer.max_steps=1")
    train_here(*(w for w in words if not w.startswith("init_from=")), f"init_from={extended}")
    rope = load_checkpoint(tmp_path / "run")[1].model.rope
    assert isinstance(rope, YarnConfig)
    assert (rope.original_max_seq_len, rope.factor) == (32, 3.0)


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
    assert said in refusal(lambda: train_here(*begun(trained, tmp_path / "run", *words)))
    assert not (tmp_path / "run").exists()
