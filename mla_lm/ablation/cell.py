"""One cell of a study, a process of its own: `python -m mla_lm.ablation.cell FOLDER`.

It trains the configuration in `FOLDER/.cell.json` as `train.py` does, measures how fast the model
reads and writes, and leaves both costs in `cost.json`. It ends with the runner that started it,
however that ended: by its standard input.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from filelock import FileLock

from mla_lm.config import RunConfig
from mla_lm.errors import STOPPED, guard
from mla_lm.files import read_object, replacing

CONFIG, COST, LOCK = ".cell.json", "cost.json", ".cell.lock"  # hidden: the run's folder is empty
PATIENCE = 600.0  # seconds for the process before this one to save and end


def write_config(folder: Path, cfg: RunConfig) -> None:
    """Leave the configuration for the process; nobody else may read secrets of its loggers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).touch(mode=0o600)
    (folder / CONFIG).write_text(cfg.model_dump_json(indent=2))


def costs(folder: Path) -> dict[str, Any]:
    """`peak_memory` in bytes once it is trained, then also speeds by context and batch."""
    return read_object(folder / COST) if (folder / COST).exists() else {}


def done(folder: Path) -> bool:
    """Whether nothing is left to do for a cell."""
    return "cache/bytes_per_token" in costs(folder)


def main(name: str) -> None:
    """Do what is left of the cell in a folder."""
    folder = Path(name)
    cfg = RunConfig.model_validate_json((folder / CONFIG).read_text())
    if "RANK" in os.environ:  # one of several processes that this cell has started
        train(cfg, name)
        return
    threading.Thread(target=_end_with_runner, daemon=True).start()
    with FileLock(folder / LOCK, timeout=PATIENCE):
        if not costs(folder):
            train(cfg, name)
            from mla_lm.machine import resident

            _write(folder, {"peak_memory": resident("VmHWM")})
        if not done(folder):
            _write(folder, costs(folder) | speeds(cfg))


def train(cfg: RunConfig, name: str) -> None:
    """As `train.py` does; where a run has several processes, each is `cell FOLDER` again."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # a rank says in one line what fails
    from mla_lm.training import processes as ranks
    from mla_lm.training.run import fit

    sys.argv[0] = "-m"
    if not ranks.launched(cfg.trainer, ["mla_lm.ablation.cell", name]):
        with ranks.joined(cfg.trainer):
            fit(cfg)


def speeds(cfg: RunConfig) -> dict[str, float]:
    """Speeds of the trained model, as `eval.py parts=[profile]` measures them."""
    from mla_lm.checkpoint.record import load_checkpoint
    from mla_lm.evaluation.samples import profile
    from mla_lm.machine import autocast, hardware

    here = hardware(cfg.precision, cfg.trainer.accelerator)
    with autocast(here.precision, here.device):
        return profile(load_checkpoint(cfg.run_dir)[0].to(here.device))


def _write(folder: Path, content: dict[str, Any]) -> None:
    with replacing(folder / COST) as path:
        path.write_text(json.dumps(content, indent=2) + "\n")


def _end_with_runner() -> None:
    """Wait for the end of the standard input, which nothing is written to; then save and end."""
    os.read(sys.stdin.fileno(), 1)  # not by its buffer, which a daemon thread may not hold at exit
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # who read them is gone
        os.dup2(nowhere, descriptor)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(STOPPED)
    )  # a run that has begun takes it over
    guard(lambda: main(sys.argv[1]))
