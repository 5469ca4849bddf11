"""Experts are counted right in 96 ways to train; the biases are the same on all ranks."""

import json
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ROOT, command, environment
from tests.training.bookkeeping import Case, cases, reference

Found = dict[str, dict[str, Any]]


def start(script: str, out: Path, **extra: str) -> subprocess.Popen[str]:
    script = str(ROOT / "tests" / "training" / script)
    return subprocess.Popen(
        command(script, str(out)),
        cwd=out.parent,
        env=environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def torchrun(rank: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "bookkeeping",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def run_ranks(script: str, place: Path) -> dict[str, Found]:
    """What each rank of a script found: alone, and as one of two."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ways = {"alone": {}, "first": torchrun(0, port), "second": torchrun(1, port)}
    running = {name: start(script, place / f"{name}.json", **extra) for name, extra in ways.items()}
    for process in running.values():
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    return {name: json.loads((place / f"{name}.json").read_text()) for name in ways}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    return run_ranks("bookkeeping.py", tmp_path_factory.mktemp("bookkeeping"))


def test_there_are_96_ways() -> None:
    assert 2 * len(list(cases())) == 96


@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_counts_and_biases_are_those_of_a_plain_loop(case: Case, found: dict[str, Found]) -> None:
    plain = case._replace(checkpointing="none", evaluate=False)
    alone, together = (reference(plain, n_ranks) for n_ranks in (1, 2))
    assert found["alone"][str(case)] == alone
    assert found["first"][str(case)] == found["second"][str(case)] == together
    assert any(bias != 0 for layer in alone["biases"] for bias in layer)
