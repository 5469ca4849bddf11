"""What a user is told on the way: the run's folder, Ctrl-C, memory that is out."""

import json
import os
import pty
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from mla_lm import load_config
from mla_lm.errors import INTERRUPTED
from mla_lm.training.checkpoints import SIGNALS
from mla_lm.training.run import said_again, what_helps
from tests.processes import command, environment, run
from tests.runs.conftest import Run, checkpoint, refusal, train_here

LONG = ("trainer.max_steps=2000", "trainer.val_every_n_steps=2000")


class Greedy(L.Callback):
    """Wants more memory than any machine has."""

    def on_train_batch_start(self, *_: Any) -> None:
        torch.empty(2**55)


class Interrupted(L.Callback):
    """Ctrl-C before training has begun."""

    def on_fit_start(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def test_the_folder_has_command_versions_and_pictures(trained: Run) -> None:
    ran = json.loads((trained.folder / "run.json").read_text())
    assert ran["command"].startswith("python train.py model=nano data=text ")
    assert ran["command"].endswith(f"run_dir={trained.folder}")
    assert ran["environment"].keys() >= {"python", "torch", "lightning", "commit", "device"}
    pictures = {path.name: path.read_bytes() for path in (trained.folder / "plots").iterdir()}
    assert sorted(pictures) == [
        "expert_load.png",
        "learning_rate.png",
        "loss.png",
        "mtp_acceptance.png",
    ]
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())


def test_ctrl_c_saves_and_says_how_to_go_on(trained: Run, tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    words = (*trained.overrides, *LONG, f"run_dir='{folder}'")
    (again,) = [word for word in words if word.startswith("callbacks.")]  # not in a checkpoint
    process = subprocess.Popen(
        command("train.py", *words),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 7/"):
            break
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    stopped = int(re.findall(r"stopped and saved at step (\d+)", said)[0])
    assert checkpoint(folder, stopped).exists()
    (way,) = re.findall(r"go on with: python (train.py .*)", said)
    assert way == f"train.py run_dir='{folder}' resume=auto {again}"
    done = run(
        "train.py",
        f"run_dir='{folder}'",
        "resume=auto",
        f"trainer.max_steps={stopped}",
        cwd=tmp_path,
    )
    assert f"step {stopped}" in done.stdout


def test_ctrl_c_before_the_first_step(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    early = "+callbacks.early._target_=tests.runs.test_console.Interrupted"
    with pytest.raises(SystemExit) as caught:
        train_here(*trained.overrides, early, f"run_dir={tmp_path / 'run'}")
    assert caught.value.code == INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


def test_signals_are_given_back(trained: Run, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    train_here(*trained.overrides, "trainer.max_steps=1", f"run_dir={tmp_path / 'run'}")
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_what_is_said_again_on_going_on() -> None:
    kept = ["model=nano", "data.path=text"]
    lost = ["callbacks.samples.prompt=def", "~callbacks.plots"]
    anew = ["run_dir=a", "+run_dir=b", "++resume=auto", "run_id=c"]
    secret = ["logger.wandb.api_key=0123", "++logger.other.token=4567"]
    assert said_again([*anew, *kept, *secret, *lost], kept) == lost


def test_memory_that_is_out_is_said_with_what_helps(trained: Run, tmp_path: Path) -> None:
    greedy = "+callbacks.greedy._target_=tests.runs.test_console.Greedy"
    said = refusal(lambda: train_here(*trained.overrides, greedy, f"run_dir={tmp_path / 'run'}"))
    assert said.startswith("out of memory in a step of 4 rows of 32 tokens; what helps: (1) ")
    assert "data.batch_size=2 trainer.accumulate_grad_batches=2" in said
    assert "(2) trainer.activation_checkpointing=" in said
    assert "(3) data.seq_len=16 or a smaller model" in said


def test_a_prompt_that_does_not_fit_is_refused_before_the_first_step(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = f"callbacks.samples.prompts=['{'abc ' * 40}']"
    words = (*trained.overrides, long, f"run_dir={tmp_path / 'run'}")
    assert "exceeds model.max_seq_len=32" in refusal(lambda: train_here(*words))
    assert "step 1/" not in capsys.readouterr().out


class Mute(L.Callback):
    def __init__(self) -> None:
        raise AssertionError


def test_a_callback_that_cannot_be_made_is_named(trained: Run, tmp_path: Path) -> None:
    mute = "+callbacks.mute._target_=tests.runs.test_console.Mute"
    said = refusal(lambda: train_here(*trained.overrides, mute, f"run_dir={tmp_path / 'run'}"))
    assert said == "callbacks.mute: cannot be made (AssertionError:)"


def test_a_model_that_no_memory_holds(trained: Run, tmp_path: Path) -> None:
    huge = ("model.inter_dim=1000000000000", f"run_dir={tmp_path / 'run'}")
    said = refusal(lambda: train_here(*trained.overrides, *huge))
    assert said.startswith("out of memory for the weights; what helps: (1) a smaller model")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rows", "n_ranks", "checkpointing", "ways"),
    [
        (4, 2, "none", ["(1) data.batch_size=2 ", "(2) trainer.act", "(3) data.seq_len="]),
        (6, 2, "none", ["(1) trainer.act", "(2) data.seq_len="]),
        (1, 1, "none", ["(1) trainer.act", "(2) data.seq_len="]),
        (8, 1, "reentrant", ["(1) data.batch_size=4 ", "(2) data.seq_len="]),
        (3, 1, "reentrant", ["(1) data.seq_len="]),
    ],
)
def test_only_what_can_be_done_is_said_to_help(
    rows: int, n_ranks: int, checkpointing: str, ways: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(n_ranks))
    words = (f"data.batch_size={rows}", f"trainer.activation_checkpointing={checkpointing}")
    said = what_helps(load_config(["model=nano", *words])).partition("what helps: ")[2]
    for found, way in zip(said.split("; "), ways, strict=True):
        assert found.startswith(way)


def test_a_terminal_sees_one_bar(trained: Run, tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    words = (*trained.overrides, f"run_dir={tmp_path / 'run'}")
    process = subprocess.Popen(
        command("train.py", *words),
        cwd=tmp_path,
        env=environment(TERM="xterm", COLUMNS="140"),
        stdout=terminal,
        stderr=subprocess.PIPE,
    )
    os.close(terminal)
    seen = b""
    try:
        while piece := os.read(controller, 65536):
            seen += piece
    except OSError:  # the other side is closed
        pass
    os.close(controller)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
    text = seen.decode()
    assert "12/12" in text
    assert re.search(r"loss \d\.\d+  \d\.\d+ bits/byte  [\d,]+ tokens/s  \d+% of peak", text)
    assert "\x1b[?25h" in text  # the cursor is shown again
    assert not re.search(r"step \d+/12", text)
