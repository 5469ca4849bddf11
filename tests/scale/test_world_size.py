"""The same run on one process, on several, and on a number that changes, is stopped or killed."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mla_lm.errors import STOPPED
from tests.processes import ROOT, environment, free_port
from tests.scale.runs import (
    DDP,
    FSDP,
    STEPS,
    SYNTHETIC,
    TORCHRUN,
    assert_bit_equal,
    by_step,
    ended,
    logged,
    n_ranks,
    noted,
    order,
    start,
    train,
    weights,
    words,
    write_text,
)

FOUR = ("trainer=ddp", "trainer.devices=4")
SAVE_OFTEN = "checkpoint.every_n_steps=4"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scale")
    write_text(folder / "text.txt")
    return folder


def named(strategy: tuple[str, ...]) -> str:
    """`ddp2`, for one."""
    return "".join(word.partition("=")[2] for word in strategy)


@pytest.fixture(scope="module")
def alone(place: Path) -> Path:
    return train(place / "alone")


@pytest.fixture(scope="module")
def ddp(place: Path) -> Path:
    """As `test_several_processes_are_one` leaves it."""
    run = place / named(DDP)
    return run if run.exists() else train(run, *DDP)


def assert_same_losses(
    run: Path, expected: Path, tolerance: float, *, stopped: tuple[int, ...] = ()
) -> None:
    """Of all steps but those that a signal `stopped` after, which are not logged."""
    found, wanted = logged(run), logged(expected)
    assert len(wanted) in (2 * STEPS + 2, 3 * STEPS + 2)
    wanted = {(name, step): x for (name, step), x in wanted.items() if step + 1 not in stopped}
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value, rel=tolerance), key


@pytest.mark.parametrize("strategy", [DDP, FSDP, pytest.param(FOUR, marks=pytest.mark.slow)])
def test_several_processes_are_one(place: Path, alone: Path, strategy: tuple[str, ...]) -> None:
    run = train(place / named(strategy), *strategy)
    assert_same_losses(run, alone, 1e-5)
    assert order(run) == order(alone)
    ranks = range(n_ranks(run))
    loads, biases = ([noted(run, rank, key) for rank in ranks] for key in ("load", "biases"))
    assert loads[0][0] == noted(alone, 0, "load")[0]
    assert all(load == loads[0] for load in loads)
    assert all(bias == biases[0] for bias in biases)
    assert any(value for layer in biases[0][-1] for value in layer)
    found, wanted = weights(run), weights(alone)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0.02, atol=2e-4, msg=name)
    if strategy is FSDP:
        assert 0 not in noted(run, 0, "kept")
        assert set(noted(run, 1, "kept")) == {0}  # only rank zero holds the whole to write it


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "tolerance"),
    [
        (("data.mask_documents=true", "balance=switch"), 1e-5),
        (SYNTHETIC, 1e-5),
        (("optim=muon", "model/attention=gqa"), 1e-3),
    ],
    ids=["documents", "answers", "muon"],
)
def test_losses_are_means_over_all_tokens(
    more: tuple[str, ...], tolerance: float, tmp_path: Path
) -> None:
    """Of documents so short that rows, and so ranks, have unlike numbers of MTP targets."""
    text = write_text(tmp_path / "text.txt").read_text()
    (tmp_path / "short").mkdir()
    for number, paragraph in enumerate(text.split("\n\n")):
        (tmp_path / f"short/{number}.txt").write_text(paragraph[: 20 + number % 90])
    if "data.mask_documents=true" in more:
        more = (*more, f"data.path={tmp_path / 'short'}")
    alone = train(tmp_path / "alone", *more)
    for name, strategy in (("ddp", DDP), ("fsdp", FSDP)):
        assert_same_losses(train(tmp_path / name, *more, *strategy), alone, tolerance)


@pytest.mark.slow
def test_the_number_of_processes_changes_on_the_way(place: Path, alone: Path) -> None:
    """A signal to one rank stops all."""
    run = place / "changing"
    smaller = ("data.batch_size=2", "trainer.accumulate_grad_batches=4")
    for part, stop in zip((FSDP, smaller, DDP), (7, 13, None), strict=True):
        until = () if stop is None else (f"+callbacks.watch.stop_at={stop}",)
        done = ended(start(run, *part, *until, "resume=auto"))
        assert done.status == (0 if stop is None else STOPPED), done.err
    assert_same_losses(run, alone, 1e-4, stopped=(7, 13))
    assert [len(rows) for rows in noted(run, 0, "rows")] == [2] * (2 * 7 + 4 * 6 + 2 * 7)


def kill_at(process: subprocess.Popen[str], run: Path, step: int, rank: int) -> None:
    """`kill -9` to a rank some time into a step."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"step {step}/"):
            break
    os.kill(noted(run, rank, "pid")[-1], signal.SIGKILL)


@pytest.mark.parametrize("strategy", [DDP, pytest.param(FSDP, marks=pytest.mark.slow)])
def test_a_killed_rank_ends_the_other(place: Path, strategy: tuple[str, ...]) -> None:
    """Resumed, the run ends bit for bit like an undisturbed one."""
    undisturbed, run = place / named(strategy), place / f"killed {named(strategy)}"
    if not undisturbed.exists():
        train(undisturbed, *strategy)
    again = (*strategy, SAVE_OFTEN, "resume=auto")
    process = start(run, *again)
    kill_at(process, run, 13, 1)
    done = ended(process)
    assert done.status == 1
    assert "rank 1 with exit code -9" in done.err.splitlines()[-1]
    train(run, *again)
    assert_bit_equal(run, undisturbed)
    for rank in range(2):
        assert by_step(run, rank, "drawn") == by_step(undisturbed, rank, "drawn")
    assert noted(run, 0, "drawn")[0] != noted(run, 1, "drawn")[0]


@pytest.mark.slow
@pytest.mark.parametrize("rendezvous", ["--standalone", "--rdzv-backend=static"])
def test_torchrun_starts_the_ranks_again(place: Path, ddp: Path, rendezvous: str) -> None:
    run = place / f"restarted{rendezvous[:6]}"
    options = (f"--master-port={free_port()}", "--nproc-per-node=2", "--max-restarts=2")
    more = ("trainer=ddp", "resume=auto", SAVE_OFTEN)
    process = start(run, *more, torchrun=(rendezvous, *options))
    kill_at(process, run, 6, 1)
    done = ended(process)
    assert done.status == 0, done.err
    assert len(noted(run, 0, "pid")) == 2
    assert "resumed" in done.out
    assert_bit_equal(run, ddp)


@pytest.mark.slow
def test_the_batch_script_of_the_page(place: Path, ddp: Path) -> None:
    """Two agents, with a scheduler that has both nodes here, are bit for bit one."""
    page = (ROOT / "mla_lm/training/README.md").read_text()
    (script,) = re.findall(r"```sh\n(#!/bin/bash.*?)```", page, re.DOTALL)
    run = place / "scheduled"
    run.mkdir()
    run_words = shlex.join([word for word in words(run) if not word.startswith("run_dir=")])
    script = (
        script.replace("--nproc-per-node=8", "--nproc-per-node=1")
        .replace(":29500", f":{free_port()}")
        .replace(".venv/bin/torchrun", f"{sys.executable} -m {TORCHRUN}")
        .replace("train.py", str(ROOT / "train.py"))
        .replace("run_dir=runs/big", f"run_dir={run / 'run'} {run_words}")
    )
    tools = {"scontrol": "echo 127.0.0.1", "srun": '"$@" & "$@" & wait'}
    for name, body in tools.items():
        (run / name).write_text(f"#!/bin/bash\n{body}\n")
        (run / name).chmod(0o755)
    (run / "job.sh").write_text(script)
    job = {"SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "here"}
    path = f"{run}:{os.environ['PATH']}"
    done = subprocess.run(["bash", "job.sh"], cwd=run, env=environment(PATH=path, **job))
    assert done.returncode == 0
    assert logged(run) == logged(ddp)
    assert_bit_equal(run, ddp)
    assert n_ranks(run) == 2
