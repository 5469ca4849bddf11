"""A rank that is killed takes the run down, named, and the run goes on as if nothing had been."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.scale.runs import (
    DDP,
    FSDP,
    STEPS,
    ended,
    free_port,
    of,
    start,
    train,
    weights,
)

SECONDS = 30


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> Path:
    return train(place / "undisturbed", *DDP)


def kill_at(process: subprocess.Popen[str], run: Path, step: int, rank: int, delay: float) -> None:
    """`kill -9` to a rank some time into a step."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"step {step}/"):
            break
    time.sleep(delay)
    os.kill(of(run, rank, "pid")[-1], signal.SIGKILL)


def assert_killed_and_continued(run: Path, undisturbed: Path, rng: random.Random) -> None:
    step, rank, delay = rng.randrange(3, STEPS - 3), rng.randrange(2), rng.uniform(0, 0.05)
    words = (*DDP, "checkpoint.every_n_steps=4")
    process = start(run, *words)
    kill_at(process, run, step, rank, delay)
    killed = time.monotonic()
    done = ended(process)
    assert time.monotonic() - killed < SECONDS
    assert done.status == 1, done.err
    assert done.err.splitlines()[-1] == f"error: rank {rank} was killed by signal 9"
    assert "Traceback" not in done.err
    train(run, *words, "resume=auto")
    found, wanted = weights(run), weights(undisturbed)
    assert found.keys() == wanted.keys()
    assert all(found[name].equal(tensor) for name, tensor in wanted.items())


def test_a_killed_rank_is_named_and_the_run_continued(place: Path, undisturbed: Path) -> None:
    assert_killed_and_continued(place / "killed", undisturbed, random.Random(1))


@pytest.mark.slow
def test_twenty_times(place: Path, undisturbed: Path) -> None:
    rng = random.Random(2)
    for number in range(20):
        assert_killed_and_continued(place / f"killed-{number}", undisturbed, rng)


@pytest.mark.slow
@pytest.mark.parametrize("rendezvous", ["--standalone", "--rdzv-backend=static"])
def test_torchrun_starts_the_ranks_again(place: Path, undisturbed: Path, rendezvous: str) -> None:
    run = place / f"restarted{rendezvous[:6]}"
    port = f"--master-port={free_port()}"
    agent = ("torch.distributed.run", rendezvous, port, "--nproc-per-node=2", "--max-restarts=2")
    agent = (*agent, "--")
    process = start(run, *agent, "trainer=ddp", "resume=auto", "checkpoint.every_n_steps=4")
    kill_at(process, run, 6, 1, 0.01)
    done = ended(process)
    assert done.status == 0, done.err
    assert len(of(run, 0, "pid")) == 2
    assert "resumed" in done.out
    found, wanted = weights(run), weights(undisturbed)
    assert all(found[name].equal(tensor) for name, tensor in wanted.items())


@pytest.mark.slow
def test_sharded_ranks_too(place: Path) -> None:
    whole, run = train(place / "sharded", *FSDP), place / "sharded and killed"
    process = start(run, *FSDP, "checkpoint.every_n_steps=4")
    kill_at(process, run, 9, 0, 0.0)
    assert ended(process).status == 1
    train(run, *FSDP, "resume=auto")
    found, wanted = weights(run), weights(whole)
    assert all(found[name].equal(tensor) for name, tensor in wanted.items())
