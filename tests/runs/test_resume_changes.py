"""What may differ from the run that is resumed, what is told, and what never may."""

from pathlib import Path
from typing import Any

import pytest

from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.checkpoint.record import read
from mla_lm.checkpoint.resume import warn_of_environment
from mla_lm.machine import hardware
from tests.runs.conftest import (
    STEPS,
    Run,
    checkpoint,
    content,
    copied,
    refusal,
    resolve,
    train_here,
)


@pytest.mark.parametrize(
    ("override", "before"),
    [
        ("data.seq_len=16", "32"),
        ("data.batch_size=8", "4"),
        ("seed=7", "1"),
        ("trainer.accumulate_grad_batches=2", "1"),
    ],
)
def test_a_change_of_the_run_is_refused_unless_allowed(
    trained: Run, override: str, before: str
) -> None:
    message = refusal(lambda: resolve(trained, f"resume={trained.folder}", override))
    assert message.startswith(f"{override}: ")
    assert f"trained with {before};" in message
    key = override.split("=")[0]
    words = (override, f"resume_allow=[{key}]", "model.max_seq_len=32")
    allowed = resolve(trained, f"resume={trained.folder}", *words)
    assert allowed.resume == str(checkpoint(trained.folder, STEPS))


@pytest.mark.parametrize(
    ("override", "before"),
    [
        ("model.dim=64", "48"),
        ("model.attention.kv_lora_rank=24", "20"),
        ("optim.lr=0.001", "0.006"),
        ("optim.kind=adamw", "muon"),
    ],
)
def test_what_the_checkpoint_holds_cannot_change(trained: Run, override: str, before: str) -> None:
    key = override.split("=")[0]
    words = (f"resume={trained.folder}", override, f"resume_allow=[{key}]")
    message = refusal(lambda: resolve(trained, *words))
    assert message.startswith(f"{override}: ")
    assert f"trained with {before};" in message


def test_a_key_that_may_differ_must_be_one(trained: Run) -> None:
    message = refusal(lambda: resolve(trained, f"resume={trained.folder}", "resume_allow=[sede]"))
    assert message == "resume_allow=sede: no such key; the nearest known one is seed"


def test_another_attention_kind_is_refused(trained: Run) -> None:
    words = (f"resume={trained.folder}", "model/attention=gqa")
    assert "model.attention." in refusal(lambda: resolve(trained, *words))


def test_length_may_change(trained: Run) -> None:
    cfg = resolve(trained, f"resume={trained.folder}", "trainer.max_steps=20")
    assert cfg.trainer.max_steps == 20
    assert cfg.run_dir == str(trained.folder)


def test_changed_corpus_is_refused(trained: Run, tmp_path: Path) -> None:
    place = copied(trained.folder.parent, tmp_path / "moved")
    path = checkpoint(place / "run", STEPS)
    text = place / "text" / "00.py"
    text.write_text(text.read_text() + "more = 1\n")
    words = (
        "data=text",
        f"data.path={place / 'text'}",
        "resume_allow=[data.path]",
        "trainer.max_steps=14",
    )
    message = refusal(lambda: train_here(f"resume={path}", *words))
    assert "trained with data corpus=" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [("threads", 64), ("world_size", 8), ("torch", "2.0.0"), ("precision", "bf16-mixed")],
)
def test_what_changes_the_bits_is_told_unless_allowed(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: Any
) -> None:
    path = elsewhere(trained, tmp_path, **{key: value})
    warn(trained, path, tmp_path / "new")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {key}=")
    assert str(value) in line
    warn(trained, path, tmp_path / "new", f"resume_allow=[{key}]")
    assert capsys.readouterr().err == ""


def warn(trained: Run, path: Path, run_dir: Path, *overrides: str) -> None:
    cfg = resolve(trained, f"resume={path}", f"run_dir={run_dir}", *overrides)
    here = hardware(cfg.precision, cfg.trainer.accelerator)
    warn_of_environment(cfg, read(path)[0].environment, here.environment)


def elsewhere(trained: Run, place: Path, **environment: Any) -> Path:
    """The last checkpoint, as if made where something else holds."""
    stored = content(checkpoint(trained.folder, STEPS))
    stored["mla_lm"]["environment"] |= environment
    checkpoint_file.write(place / "x.ckpt", stored)
    return place / "x.ckpt"
