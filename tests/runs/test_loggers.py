"""What loggers receive: configuration without secrets, numbers, pictures, samples, real files."""

import json
from pathlib import Path

import pytest

from tests.conftest import one_line
from tests.processes import run
from tests.runs.conftest import STEPS, Run, checkpoint, logged, short_run, train_here, write_corpus
from tests.runs.test_train import METRICS

PICTURES = {"plots/loss", "plots/learning_rate", "plots/mtp_acceptance", "plots/expert_load"}
SECRET = "s3cr3t"


def test_tensorboard_holds_names_pictures_and_samples(trained: Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ("logger=tensorboard", "trainer.max_steps=4", f"run_dir={tmp_path / 'r'}")
    train_here(*trained.overrides, *words)
    (file,) = (tmp_path / "r").rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file)).Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) - {"epoch", "hp_metric"} == METRICS
    losses = [float(row["train/ce"]) for row in logged(trained.folder) if "train/ce" in row]
    assert events.Scalars("train/ce")[0].value == pytest.approx(losses[0], rel=1e-6)
    assert set(tags["images"]) == PICTURES
    assert events.Images("plots/loss")[-1].encoded_image_string.startswith(b"\x89PNG")
    (samples,) = [tag for tag in tags["tensors"] if tag.startswith("samples")]
    (text,) = events.Tensors(samples)[-1].tensor_proto.string_val
    assert "sample: the model continues " in text.decode()


@pytest.mark.parametrize("method", ["log_hyperparams", "log_metrics"])
def test_a_logger_that_fails_late_is_named_in_one_line(
    method: str, trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TypeError("init() got an\nunexpected keyword argument")

    monkeypatch.setattr(f"lightning.pytorch.loggers.CSVLogger.{method}", fail)
    said = one_line(lambda: train_here(*trained.overrides, f"run_dir={tmp_path / 'run'}"))
    assert said == "logger: CSVLogger: TypeError: init() got an unexpected keyword argument"


@pytest.mark.slow
def test_wandb_is_offline_and_goes_on_as_the_same_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    write_corpus(tmp_path / "text")
    folder = tmp_path / "run"
    words = (*short_run(tmp_path), "logger=[csv,wandb]", f"run_dir={folder}", "resume=auto")
    secret = f"+logger.wandb.tags=[https://me:{SECRET}@host]"
    offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    for _ in range(2):
        result = run("train.py", *words, secret, cwd=tmp_path, **offline)
        assert result.returncode == 0, result.stderr
        checkpoint(folder, STEPS).unlink()
    run_id = json.loads((folder / "config.json").read_text())["run_id"]
    files = sorted(folder.rglob("run-*.wandb"))
    assert [file.name for file in files] == [f"run-{run_id}.wandb"] * 2
    for file in files:
        content = file.read_bytes()  # a log of protobufs, whose texts are plain
        known = METRICS | PICTURES | {"samples", "kv_lora_rank"}
        assert [name for name in known if name.encode() not in content] == []
        assert list(file.parent.rglob("plots/loss_*.png"))
    rows = [int(row["step"]) for row in logged(folder, version=1) if "train/ce" in row]
    assert rows == [10, 11]
    assert SECRET not in (folder / "run.json").read_text() + (folder / "config.json").read_text()
