"""Two ranks: a signal to one stops and saves both, and the random numbers of each go on."""

import json
import socket
import subprocess
from pathlib import Path
from typing import Any

from mla_lm.checkpoint.record import newest
from mla_lm.errors import STOPPED
from tests.processes import ROOT, command, environment
from tests.training.test_bookkeeping import torchrun


def run(place: Path, *stop: str) -> tuple[list[int], list[dict[str, Any]]]:
    """The exit status of each rank, and what it ends with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script, ends = str(ROOT / "tests/reliability/ranks.py"), [place / "0.json", place / "1.json"]
    ranks = [
        subprocess.Popen(
            command(script, str(place / "run"), str(end), *stop),
            env=environment(**torchrun(rank, port)),
            stdout=subprocess.DEVNULL,
        )
        for rank, end in enumerate(ends)
    ]
    status = [rank.wait(120) for rank in ranks]
    return status, [json.loads(end.read_text()) for end in ends if end.exists()]


def test_two_ranks_stop_together_and_go_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    status, whole = run(tmp_path / "whole")
    assert status == [0, 0]
    assert whole[0]["weights"] == whole[1]["weights"]

    assert run(tmp_path / "cut", "2") == ([STOPPED, STOPPED], [])
    start = newest(tmp_path / "cut" / "run")
    assert start is not None
    assert start.name == "step-000002.ckpt"

    status, resumed = run(tmp_path / "cut")
    assert status == [0, 0]
    assert [rank["start"] for rank in resumed] == [start.name] * 2
    assert [rank["weights"] for rank in resumed] == [rank["weights"] for rank in whole]
