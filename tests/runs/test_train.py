"""What a run leaves behind, and the order in which it sees its data."""

import ast
import json
import re
import shlex
import shutil
from itertools import chain, islice, repeat
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mla_lm import load_checkpoint, load_config
from mla_lm.checkpoint.find import newest
from mla_lm.config import RunConfig
from mla_lm.data import Tokenizer, prepare
from mla_lm.data.loader import TrainLoader
from mla_lm.training.module import LanguageModel
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
    "train/text_loss",
    "train/tokens_per_second",
    "train/mfu",
    "mtp/acceptance",
    *(f"moe/{layer}{name}" for layer in ("", "layer_1/", "mtp_1/") for name in LOADS),
    "val/loss",
    "val/perplexity",
    "val/bpb",
}
PLOTS = {"expert_load.png", "learning_rate.png", "loss.png", "mtp_acceptance.png"}


def test_the_folder_holds_what_made_the_run(trained: Run) -> None:
    stored = RunConfig.model_validate(json.loads((trained.folder / "config.json").read_text()))
    places = (f"run_dir={trained.folder}", f"run_id={stored.run_id}")
    cfg = load_config([*trained.overrides, *places])
    assert stored.model_dump() == cfg.model_dump()
    data = json.loads((trained.folder / "data.json").read_text())
    assert data == prepare(cfg.data).manifest
    content = (trained.folder / "tokenizer.json").read_text()
    assert Tokenizer(content, end_of_text="<|endoftext|>").vocab_size == 300
    ran = json.loads((trained.folder / "run.json").read_text())
    assert ran["command"] == shlex.join(["python", "train.py", *trained.overrides])
    assert ran["environment"].keys() >= {"python", "torch", "lightning", "commit", "device"}
    plots = {path.name: path.read_bytes() for path in (trained.folder / "plots").iterdir()}
    assert plots.keys() == PLOTS
    assert all(content.startswith(b"\x89PNG") for content in plots.values())


def test_it_ends_with_a_checkpoint_of_its_last_step_and_keeps_the_newest(trained: Run) -> None:
    """An epoch ends with the tenth."""
    assert SAVE_EVERY < EPOCH == 2 * SAVE_EVERY
    assert sorted((trained.folder / "checkpoints").iterdir()) == [
        checkpoint(trained.folder, step) for step in (EPOCH, STEPS)
    ]
    last = checkpoint(trained.folder, STEPS)
    assert newest(trained.folder) == last
    assert content(last)["global_step"] == STEPS
    assert f"saved {last}" in trained.stdout.splitlines()
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
    steps = [line for line in text.splitlines() if line.startswith("## ")]
    assert steps == ["## step 4", "## step 8", "## step 12"]
    data = prepare(load_config(trained.overrides).data)
    prompts = re.findall(r"^sample: the model continues (.*)$\n\n    def f", text, re.MULTILINE)
    assert prompts == 3 * prompts[: len(prompts) // 3]
    held_out = data.tokenizer.decode(data.val[:].tolist())
    assert all(ast.literal_eval(prompt) in held_out for prompt in prompts)


def test_batches_follow_the_loader_across_epochs(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_a_model_too_large_for_this_machine_is_refused_first(tmp_path: Path) -> None:
    """Before a corpus is prepared or a run folder made."""
    cache = tmp_path / "cache"
    result = run("train.py", "model=deepseek_v3", f"data.cache_dir={cache}", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "loading torch and lightning\n")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: model: 682,636.5M parameters need 8,199.5 GB for weights")
    assert list(tmp_path.iterdir()) == []
