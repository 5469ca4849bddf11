"""One cell of a study, a process of its own: `python -m mla_lm.ablation.cell FOLDER [profile] ...`.

It trains as `train.py` does, notes its peak memory in `cost.json` when all is done, and ends when
its standard input does: with the runner that started it, however that ended.
"""

import json
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

from mla_lm.atomic import replacing
from mla_lm.cli import CONFIGS
from mla_lm.config.words import quoted
from mla_lm.machine import resident

COST = "cost.json"
GRACE = 30.0  # seconds to finish a step and save
PROFILE = "profile"


def end_with_runner() -> None:
    """Wait for the end of the standard input, then save and end, or just end."""
    os.read(sys.stdin.fileno(), 1)  # not by its buffer, which a daemon thread may not hold at exit
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)


def application(name: str, words: list[str]) -> None:
    """Run one of the two applications here, as from the command line."""
    path = CONFIGS.parent / name
    sys.argv = [str(path), *words]
    runpy.run_path(str(path), run_name="__main__")


def main(folder: str, *words: str) -> None:
    """Train in a folder; with `profile` also measure how fast the model reads and writes."""
    threading.Thread(target=end_with_runner, daemon=True).start()
    overrides = [word for word in words if word != PROFILE]
    application("train.py", [*overrides, quoted("run_dir", folder), "resume=auto"])
    peak = resident("VmHWM")
    if PROFILE in words:
        application("eval.py", [quoted("ckpt", folder), "parts=[profile]"])
    with replacing(Path(folder) / COST) as path:
        path.write_text(json.dumps({"peak_memory": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
