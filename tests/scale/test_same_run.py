"""The same run on one process, on several, and on a number that changes on the way."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mla_lm.errors import STOPPED
from tests.processes import ROOT, environment
from tests.scale.runs import (
    DDP,
    FSDP,
    STEPS,
    ended,
    free_port,
    logged,
    of,
    order,
    start,
    train,
    weights,
    words,
    write_text,
)

FOUR = ("trainer=ddp", "trainer.devices=4")
each_strategy = pytest.mark.parametrize(
    "strategy",
    [DDP, FSDP, pytest.param(FOUR, marks=pytest.mark.slow)],
    ids=["ddp", "fsdp", "four"],
)


@pytest.fixture(scope="module")
def alone(place: Path) -> Path:
    return train(place / "alone")


def assert_same_losses(
    run: Path, expected: Path, tolerance: float, *, stopped: tuple[int, ...] = ()
) -> None:
    """Of all steps but those that a signal `stopped` behind, which are not logged."""
    found, wanted = logged(run), logged(expected)
    assert len(wanted) in (2 * STEPS + 2, 3 * STEPS + 2)
    wanted = {(name, step): x for (name, step), x in wanted.items() if step + 1 not in stopped}
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value, rel=tolerance), key


@each_strategy
def test_several_processes_are_one(strategy: tuple[str, ...], alone: Path, tmp_path: Path) -> None:
    write_text(tmp_path / "text.txt")
    run = train(tmp_path / "run", *strategy)
    assert_same_losses(run, alone, 1e-5)
    assert order(run) == order(alone)
    loads = [of(run, rank, "load") for rank in range(len(list(run.glob("watch/*"))))]
    assert loads[0][0] == of(alone, 0, "load")[0]
    assert all(load == loads[0] for load in loads)
    biases = [of(run, rank, "biases") for rank in range(len(loads))]
    assert all(bias == biases[0] for bias in biases)
    assert any(value for layer in biases[0][-1] for value in layer)
    found, wanted = weights(run), weights(alone)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0.02, atol=2e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "tolerance"),
    [
        (("data.mask_documents=true", "balance=switch"), 1e-5),
        (("data=synthetic", "data.task=recall", "model.vocab_size=320"), 1e-5),
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
        run = train(tmp_path / name, *more, *strategy)
        assert_same_losses(run, alone, tolerance)


@pytest.mark.slow
def test_the_number_of_processes_changes_on_the_way(place: Path, alone: Path) -> None:
    run = place / "changing"
    smaller = ("data.batch_size=2", "trainer.accumulate_grad_batches=4")
    parts = (FSDP, smaller, DDP)
    for part, stop in zip(parts, (7, 13, None), strict=True):
        until = () if stop is None else (f"+callbacks.watch.stop_at={stop}",)
        done = ended(start(run, *part, *until, "resume=auto"))
        assert done.status == (0 if stop is None else STOPPED), done.err
    assert_same_losses(run, alone, 1e-4, stopped=(7, 13))
    seen = [len(rows) for rows in of(run, 0, "rows")]
    assert seen == [2] * (2 * 7 + 4 * 6 + 2 * 7)


def test_the_rank_that_writes_keeps_the_whole(place: Path) -> None:
    run = train(place / "kept", *FSDP, "trainer.max_steps=1")
    assert 0 not in of(run, 0, "kept")
    assert set(of(run, 1, "kept")) == {0}


def test_another_global_batch_is_refused(place: Path, alone: Path) -> None:
    done = ended(start(alone, "data.batch_size=8", *DDP, f"resume={alone / 'run'}"))
    assert done.status == 2
    assert "data.batch_size=8" in done.line


@pytest.mark.slow
def test_two_machines_are_one(place: Path) -> None:
    together = train(place / "one machine", *DDP)
    apart = place / "two machines"
    rendezvous = (
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc-per-node=1",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{free_port()}",
        "--",
    )
    agents = [start(apart, *rendezvous, "trainer=ddp") for _ in range(2)]
    for agent in agents:
        done = ended(agent)
        assert done.status == 0, done.err
    assert logged(apart) == logged(together)
    found, wanted = weights(apart), weights(together)
    assert all(found[name].equal(tensor) for name, tensor in wanted.items())


@pytest.mark.slow
def test_the_batch_script_of_the_readme(place: Path) -> None:
    """With a scheduler that has both nodes here."""
    (script,) = re.findall(r"```sh\n(#!/bin/bash.*?)```", (ROOT / "README.md").read_text(), re.S)
    run = place / "scheduled"
    run.mkdir()
    run_words = shlex.join([word for word in words(run) if not word.startswith("run_dir=")])
    script = (
        script.replace("--nproc-per-node=8", "--nproc-per-node=1")
        .replace(":29500", f":{free_port()}")
        .replace(".venv/bin/torchrun", f"{sys.executable} -m torch.distributed.run")
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
    assert logged(run).keys() == logged(train(place / "unscheduled", *DDP)).keys()
    assert len(list(run.glob("watch/*"))) == 2
