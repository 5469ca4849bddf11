"""What a user is told on the way: progress, Ctrl-C, refusals, memory that is out."""

import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from mla_lm import load_config
from mla_lm.checkpoint.find import newest
from mla_lm.cost import count_parameters
from mla_lm.errors import INTERRUPTED, STOPPED, guard
from mla_lm.files import unhidden
from mla_lm.training.checkpoints import SIGNALS
from tests.conftest import one_line
from tests.processes import ROOT, command, environment, read_terminal
from tests.runs.conftest import STEPS, Run, checkpoint, train_here

HERE = "+callbacks.mine._target_=tests.runs.test_console"
PROGRESS = r"loss \d\.\d+  \d\.\d+ bits/byte  [\d,]+ tokens/s  \d+% of matmul peak"
LONG = ("trainer.max_steps=2000", "trainer.val_every_n_steps=2000")


class Greedy(L.Callback):
    """Wants more memory than any machine has."""

    def on_train_batch_start(self, *_: Any) -> None:
        torch.empty(2**55)


class Interrupted(L.Callback):
    """Ctrl-C before training has begun."""

    def on_fit_start(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)


class Unmakeable(L.Callback):
    def __init__(self) -> None:
        raise AssertionError


def test_the_plan_is_printed_before_the_first_step(trained: Run) -> None:
    lines = trained.stdout.splitlines()
    first_step = next(i for i, line in enumerate(lines) if line.startswith("step 1/"))
    before = {line.split()[0]: line for line in lines[:first_step] if line.strip()}
    counted = count_parameters(load_config(trained.overrides).model)
    assert f"{counted.total / 1e6:.2f}M, {counted.active / 1e6:.2f}M active" in before["parameters"]
    assert "FLOPs" in before["training"]
    assert "bytes" in before["KV"]
    assert "32-true" in before["precision"]
    assert f"{STEPS} steps of {4 * 32} tokens" in before["plan"]
    assert str(trained.folder) in before["run"]
    assert re.search(r"gzip -9: \d\.\d\d bits/byte", before["corpus"])


def test_every_step_validation_and_sample_is_printed(trained: Run) -> None:
    lines = trained.stdout.splitlines()
    steps = [m[1] for line in lines if (m := re.match(rf"step (\d+)/{STEPS}  {PROGRESS}  ", line))]
    assert steps == [str(step) for step in range(1, STEPS + 1)]
    validations = [i for i, line in enumerate(lines) if "  val/loss " in line]
    assert len(validations) == 3
    assert all(lines[i + 1].startswith("sample: the model continues ") for i in validations)
    assert all(lines[i + 3].startswith("    ") for i in validations)


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_ctrl_c_saves_and_prints_a_command_that_resumes(trained: Run, tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s ~a $run (1), [x] = {"é"}'
    words = (*trained.overrides, *LONG, f"run_dir={folder}")
    again = [word for word in words if word.startswith(("callbacks.", "data.cache_dir="))]  # ours
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
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == INTERRUPTED
    stopped, resume = printed.splitlines()[-2:]
    step = int(stopped.removeprefix("stopped and saved at step "))
    typed = resume.removeprefix("resume with: ")
    assert {"resume=auto", *again} <= {*shlex.split(typed)}
    result = subprocess.run(
        ["bash", "-c", f"{typed} trainer.max_steps={step + 1}"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
    )
    assert f"resumed {checkpoint(folder, step)} step " in result.stdout, result.stderr
    assert result.returncode == 0, result.stderr


def test_a_run_that_nobody_reads_any_more_saves_and_ends(trained: Run, tmp_path: Path) -> None:
    with subprocess.Popen(
        command("train.py", *trained.overrides, *LONG, f"run_dir={tmp_path / 'run'}"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while not process.stdout.readline().startswith(b"step 2/"):
            pass
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == STOPPED
    assert newest(tmp_path / "run") is not None


def test_ctrl_c_before_the_first_step(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*trained.overrides, f"{HERE}.Interrupted", f"run_dir={tmp_path / 'run'}")
    with pytest.raises(SystemExit) as caught:
        guard(lambda: train_here(*words))
    assert caught.value.code == INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            [f"callbacks.samples.prompts=['{'abc ' * 40}']"],
            r"^callbacks\.samples\.prompts: .* exceeds model\.max_seq_len=32, from data\.seq_len$",
        ),
        ([f"{HERE}.Unmakeable"], r"^callbacks\.mine: cannot be made \(AssertionError:\)$"),
        (["callbacks.samples._target_=no.such.Class"], r"callbacks\.samples"),
        (
            [
                "model.inter_dim=1000000",
                "model.n_layers=50",
                "model.n_dense_layers=50",
                "balance=none",
            ],
            r"^model: [\d,.]+M parameters need .* GB of memory; try",
        ),
        ([f"{HERE}.Greedy"], "^out of memory with 4 rows of 32 tokens; try: "),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    words: list[str],
    line: str,
    trained: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, handlers = tmp_path / "run", [signal.getsignal(number) for number in SIGNALS]
    said = one_line(lambda: train_here(*trained.overrides, *words, f"run_dir={folder}"))
    assert re.search(line, said)
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    assert "step 1/" not in capsys.readouterr().out
    assert unhidden(folder) == []  # so that the corrected command may start there


def test_a_run_folder_in_use_is_refused_untouched(trained: Run) -> None:
    def state() -> dict[Path, tuple[int, int]]:
        files = (p for p in trained.folder.rglob("*") if p.is_file())
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in files}

    before, run_dir = state(), f"run_dir={trained.folder}"
    said = one_line(lambda: train_here(*trained.overrides, run_dir))
    assert said.startswith(f"{run_dir}: not empty")
    assert state() == before


def test_a_terminal_shows_one_bar(trained: Run, tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        command("train.py", *trained.overrides, f"run_dir={tmp_path / 'run'}"),
        cwd=tmp_path,
        env=environment(TERM="xterm", COLUMNS="140"),
        stdout=terminal,
        stderr=subprocess.PIPE,
    )
    os.close(terminal)
    text = read_terminal(controller)
    assert process.communicate()[1] == b""
    assert process.returncode == 0
    assert re.search(PROGRESS, text)
    assert f"{STEPS}/{STEPS}" in text
    assert "\x1b[?25h" in text  # the cursor is shown again
    assert not re.search(rf"step \d+/{STEPS}", text)
    assert re.search(r"validating \d/\d", text)
