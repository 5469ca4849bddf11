"""Commands as a user starts them: real processes, on one thread as the tests themselves."""

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
APPLICATIONS = ("train.py", "eval.py")


def command(*words: str) -> list[str]:
    """`train.py ...`, `eval.py ...` or `-m mla_lm ...` behind this Python."""
    first, *rest = words
    return [sys.executable, str(ROOT / first) if first in APPLICATIONS else first, *rest]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **extra}


def run(*words: str, cwd: Path, stdin: str = "", **extra: str) -> subprocess.CompletedProcess[str]:
    """Run to the end, whatever the status."""
    return subprocess.run(
        command(*words),
        cwd=cwd,
        env=environment(**extra),
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
    )


def read_terminal(controller: int) -> str:
    """What a pseudo-terminal shows until all of its programs have closed it."""
    seen = b""
    with suppress(OSError):  # the other side is closed
        while piece := os.read(controller, 65536):
            seen += piece
    os.close(controller)
    return seen.decode()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def torchrun_variables(n: int) -> list[dict[str, str]]:
    """What torchrun tells each of `n` ranks on this machine."""
    for_all = {
        "WORLD_SIZE": str(n),
        "LOCAL_WORLD_SIZE": str(n),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "tests",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return [{**for_all, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(n)]
