"""What a run leaves behind and says, and what it never does."""

import json
import shutil
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mla_lm import load_checkpoint, load_config
from mla_lm.checkpoint.record import newest
from mla_lm.config import RunConfig
from mla_lm.cost import count_parameters
from mla_lm.data import Tokenizer, TrainLoader, prepare
from mla_lm.errors import UserError
from mla_lm.objective import balance
from tests.processes import run
from tests.runs.conftest import (
    EPOCH,
    SAVE_EVERY,
    STEPS,
    Run,
    checkpoint,
    content,
    logged,
    train_here,
)

LOADS = ("max_violation", "sequence_violation", "load_entropy", "dead_experts", "bias_range")
METRICS = {
    "train/loss",
    "train/ce",
    "train/mtp",
    "train/sequence_balance",
    "train/grad_norm",
    "train/lr",
    "train/bpb",
    "train/tokens_per_second",
    "train/utilisation",
    "mtp/acceptance",
    *(f"moe/{layer}{name}" for layer in ("", "layer_1/", "mtp_1/") for name in LOADS),
    "val/loss",
    "val/perplexity",
    "val/bpb",
}


def test_run_folder_holds_what_made_the_run(trained: Run) -> None:
    stored = RunConfig.model_validate(json.loads((trained.folder / "config.json").read_text()))
    places = (f"run_dir={trained.folder}", f"run_id={stored.run_id}")
    cfg = load_config([*trained.overrides, *places])
    assert stored.model_dump() == cfg.model_dump()
    data = json.loads((trained.folder / "data.json").read_text())
    assert data["python"].count(".") == 2
    assert data == prepare(cfg.data).manifest
    content = (trained.folder / "tokenizer.json").read_text()
    assert Tokenizer(content, end_of_text="<|endoftext|>").vocab_size == 300


def test_run_ends_with_a_checkpoint_of_its_last_step(trained: Run) -> None:
    last = checkpoint(trained.folder, STEPS)
    assert newest(trained.folder) == last
    assert content(last)["global_step"] == STEPS
    assert f"saved {last}" in trained.stdout.splitlines()


def test_the_newest_checkpoints_are_kept_the_end_of_an_epoch_too(trained: Run) -> None:
    assert SAVE_EVERY < EPOCH == 2 * SAVE_EVERY
    assert sorted(p.name for p in (trained.folder / "checkpoints").iterdir()) == [
        "step-000010.ckpt",
        "step-000012.ckpt",
    ]


def test_checkpoint_loads_as_model_config_and_tokenizer(trained: Run) -> None:
    model, cfg, tokenizer = load_checkpoint(trained.folder)
    assert not model.training
    assert cfg.model.model_dump() == load_config(trained.overrides).model.model_dump()
    assert tokenizer.json == (trained.folder / "tokenizer.json").read_text()
    tokens = torch.tensor([tokenizer.encode("def f(x):")])
    assert model(tokens).logits.isfinite().all()


def test_metrics_are_logged_by_name(trained: Run) -> None:
    rows = logged(trained.folder)
    names = {name for row in rows for name in row}
    assert names - {"step", "epoch"} == METRICS
    assert sum("train/ce" in row for row in rows) == STEPS
    assert sum("val/bpb" in row for row in rows) == STEPS // 4


def test_logged_loss_is_the_weighted_sum_and_falls(trained: Run) -> None:
    cfg = load_config(trained.overrides)
    rows = [{k: float(v) for k, v in r.items()} for r in logged(trained.folder) if "train/ce" in r]
    switch = cfg.loss.mtp_switch * STEPS
    for step, row in enumerate(rows):
        weight = cfg.loss.mtp_weight if step < switch else cfg.loss.mtp_final_weight
        total = row["train/ce"] + weight * row["train/mtp"]
        total += cfg.balance.sequence_loss_weight * row["train/sequence_balance"]
        assert row["train/loss"] == pytest.approx(total, rel=1e-5)
    assert rows[-1]["train/ce"] < rows[0]["train/ce"] - 0.2


def test_samples_are_written_at_every_validation(trained: Run) -> None:
    text = (trained.folder / "samples.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## step 4",
        "## step 8",
        "## step 12",
    ]
    for prompt in ("def ", "class ", "import "):
        assert text.count(f"```\n{prompt}") == 3


def test_the_console_shows_a_sample_below_each_validation(trained: Run) -> None:
    lines = trained.stdout.splitlines()
    validations = [i for i, line in enumerate(lines) if "  val/loss " in line]
    assert len(validations) == 3
    assert all(lines[i + 1].startswith("    def ") for i in validations)


def test_console_says_what_is_coming_before_the_first_step(trained: Run) -> None:
    lines = trained.stdout.splitlines()
    first_step = next(i for i, line in enumerate(lines) if line.startswith("step 1/"))
    before = {line.split()[0]: line for line in lines[:first_step] if line.strip()}
    counted = count_parameters(load_config(trained.overrides).model)
    assert f"{counted.total / 1e6:.2f}M, {counted.active / 1e6:.2f}M active" in before["parameters"]
    assert "FLOPs" in before["training"]
    assert "bytes" in before["cache"]
    assert "32-true" in before["precision"]
    assert f"{STEPS} steps of {4 * 32} tokens" in before["plan"]
    assert str(trained.folder) in before["run"]


def test_fresh_run_into_a_used_folder_is_refused_untouched(trained: Run) -> None:
    def state() -> dict[Path, tuple[int, int]]:
        files = (p for p in trained.folder.rglob("*") if p.is_file())
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in files}

    before = state()
    with pytest.raises(UserError, match="not empty") as caught:
        train_here(*trained.overrides, f"run_dir={trained.folder}")
    assert f"run_dir={trained.folder}" in str(caught.value)
    assert state() == before


def test_run_folder_that_is_a_file_is_refused(trained: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="run_dir="):
        train_here(*trained.overrides, f"run_dir={tmp_path / 'file'}")
    assert (tmp_path / "file").read_text() == "mine"


def test_callback_that_cannot_be_made_is_refused_before_the_folder(
    trained: Run, tmp_path: Path
) -> None:
    words = (f"run_dir={tmp_path / 'run'}", "callbacks.samples._target_=no.such.Class")
    with pytest.raises(UserError, match=r"callbacks\.samples"):
        train_here(*trained.overrides, *words)
    assert not (tmp_path / "run").exists()


def test_batches_follow_the_loader_across_epochs(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mla_lm.training.module import LanguageModel

    seen: list[Tensor] = []
    training_step = LanguageModel.training_step

    def recording(self: LanguageModel, batch: Tensor, batch_idx: int) -> Tensor:
        seen.append(batch.clone())
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(LanguageModel, "training_step", recording)
    train_here(*trained.overrides, f"run_dir={tmp_path / 'run'}", "trainer.max_steps=20")
    cfg = load_config(trained.overrides)
    tokens = prepare(cfg.data).train
    loader = TrainLoader(tokens, seq_len=32, batch_size=4, accumulate=1, seed=cfg.seed)
    assert len(loader) == EPOCH
    expected = list(islice(chain.from_iterable(repeat(loader)), 20))
    for got, wanted in zip(seen, expected, strict=True):
        assert torch.equal(got, wanted)
    epochs = [int(row["epoch"]) for row in logged(tmp_path / "run") if "train/ce" in row]
    assert epochs == [step // EPOCH for step in range(20)]


def test_accumulated_micro_batches_move_the_bias_as_one_batch(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update_bias = balance.update_bias
    loads: list[Tensor] = []

    def recording(bias: Tensor, load: Tensor, **how: Any) -> None:
        loads.append(load.clone())
        update_bias(bias, load, **how)

    monkeypatch.setattr(balance, "update_bias", recording)
    steps, speed, shapes = 3, 0.01, {"whole": (8, 1), "halves": (4, 2)}
    by_shape, biases = {}, {}
    for name, (batch_size, accumulate) in shapes.items():
        train_here(
            *trained.overrides,
            f"run_dir={tmp_path / name}",
            f"data.batch_size={batch_size}",
            f"trainer.accumulate_grad_batches={accumulate}",
            f"trainer.max_steps={steps}",
            f"balance.bias_update_speed={speed}",
            "balance.bias_decay_fraction=0.0",
        )
        by_shape[name] = list(loads)
        loads.clear()
        state = content(checkpoint(tmp_path / name, steps))["state_dict"]
        biases[name] = [t for key, t in state.items() if key.endswith("correction_bias")]

    assert len(by_shape["halves"]) == len(by_shape["whole"]) == 2 * steps
    assert [int(load.sum()) for load in by_shape["halves"][:2]] == [8 * 32 * 2, 8 * 31 * 2]
    for halves, whole in zip(by_shape["halves"][:2], by_shape["whole"][:2], strict=True):
        assert torch.equal(halves, whole)
    for name, stored in biases.items():
        for layer, bias in enumerate(stored):
            expected = torch.zeros_like(bias)
            for load in by_shape[name][layer::2]:
                update_bias(expected, load, speed=speed)
            torch.testing.assert_close(bias, expected)
        assert any(bias.any() for bias in stored)


def test_tensorboard_holds_the_same_names(trained: Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    overrides = ("logger=tensorboard", "trainer.max_steps=4", f"run_dir={tmp_path / 'run'}")
    train_here(*trained.overrides, *overrides)
    (file,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file)).Reload()
    assert set(events.Tags()["scalars"]) - {"epoch", "hp_metric"} == METRICS
    losses = [float(row["train/ce"]) for row in logged(trained.folder) if "train/ce" in row]
    assert events.Scalars("train/ce")[0].value == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_blocks_train_alike_and_resume(trained: Run, tmp_path: Path) -> None:
    words = (*trained.overrides, "trainer.compile=true", f"run_dir='{tmp_path / 'run'}'")
    result = run("train.py", *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    plain, compiled = (
        [float(row["train/ce"]) for row in logged(folder) if "train/ce" in row]
        for folder in (trained.folder, tmp_path / "run")
    )
    assert compiled == pytest.approx(plain, rel=1e-3)
    checkpoint(tmp_path / "run", STEPS).unlink()
    result = run("train.py", *words, "resume=auto", "trainer.compile=false", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "trainer.compile=False" in result.stderr
    assert "so not bit for bit" in result.stderr
