"""One cell of a study, a process of its own: `python -m mla_lm.ablation.cell FOLDER [profile] ...`.

It trains as `train.py` does, notes its peak memory in `cost.json`, and ends when its standard input
does: with the runner that started it, however that ended. One process at a time works in a folder.
"""

import json
import os
import runpy
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from filelock import FileLock

from mla_lm.config import CONFIGS
from mla_lm.config.words import quoted
from mla_lm.files import replacing
from mla_lm.machine import resident

COST, LOCK = "cost.json", ".cell.lock"
PROFILE = "profile"
PATIENCE = 600.0  # seconds for the process before this one to save and end


def done(folder: Path) -> bool:
    """Whether all of a cell has been done."""
    return bool(_cost(folder).get("done"))


def _cost(folder: Path) -> dict[str, Any]:
    path = folder / COST
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def note(folder: Path, **values: Any) -> None:
    """Add to the cell's `cost.json`."""
    content = json.dumps(_cost(folder) | values)
    with replacing(folder / COST) as path:
        path.write_text(content)


def end_with_runner() -> None:
    """Wait for the end of the standard input, which nothing is written to; then save and end."""
    os.read(sys.stdin.fileno(), 1)  # not by its buffer, which a daemon thread may not hold at exit
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # who read them is gone
        os.dup2(nowhere, descriptor)
    os.kill(os.getpid(), signal.SIGTERM)


def application(name: str, words: list[str]) -> None:
    """Run one of the two applications here, as from the command line."""
    path = CONFIGS.parent / name
    sys.argv = [str(path), *words]
    runpy.run_path(str(path), run_name="__main__")


def main(name: str, *words: str) -> None:
    """Train in a folder; with `profile` also measure how fast the model reads and writes."""
    threading.Thread(target=end_with_runner, daemon=True).start()
    folder = Path(name)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK, timeout=PATIENCE):
        overrides = [word for word in words if word != PROFILE]
        application("train.py", [*overrides, quoted("run_dir", folder), "resume=auto"])
        note(folder, peak_memory=max(resident("VmHWM"), _cost(folder).get("peak_memory", 0)))
        if PROFILE in words:
            application("eval.py", [quoted("ckpt", folder), "parts=[profile]"])
        note(folder, done=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
