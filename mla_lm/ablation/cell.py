"""One cell of a study, a process of its own: `python -m mla_lm.ablation.cell FOLDER`.

It trains the configuration that the variable MLA_LM_CELL holds as `train.py` does, measures the
speed of prefill and decoding, and writes its costs to `cost.json`. No file and no command line has
the secrets of its loggers. It saves and ends when its standard input ends:
then the runner that started it is gone.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path

from filelock import FileLock

from mla_lm.config import RunConfig
from mla_lm.config.compose import validate
from mla_lm.errors import guard
from mla_lm.files import write_object

CONFIG = "MLA_LM_CELL"  # of the environment
COST, LOCK = "cost.json", ".cell.lock"  # hidden: the run's folder is empty
PATIENCE = 600.0  # seconds for the process before this one to save and end


def main(name: str) -> None:
    """Run the cell in a folder, or what is left of it."""
    folder = Path(name)
    cfg = validate(RunConfig, json.loads(os.environ[CONFIG]))
    if "RANK" in os.environ:  # one of several processes that this cell has started
        train(cfg, name)
        return
    threading.Thread(target=_end_with_runner, daemon=True).start()
    with FileLock(folder / LOCK, timeout=PATIENCE):
        if not (folder / COST).exists():
            train(cfg, name)
            write_object(folder / COST, measure(cfg))


def train(cfg: RunConfig, name: str) -> None:
    """As `train.py` does; where a run has several processes, each is `cell FOLDER` again."""
    from mla_lm.training import processes as ranks
    from mla_lm.training.run import fit

    sys.argv[0] = "-m"
    if not ranks.launched(cfg.trainer, ["mla_lm.ablation.cell", name]):
        with ranks.joined(cfg.trainer):
            fit(cfg)


def measure(cfg: RunConfig) -> dict[str, float]:
    """Bytes of `peak_memory` of the training here, and the speeds of `eval.py parts=[profile]`."""
    from mla_lm.checkpoint.find import load_checkpoint
    from mla_lm.evaluation.samples import profile
    from mla_lm.machine import autocast, hardware
    from mla_lm.memory import resident

    peak = resident("VmHWM")
    here = hardware(cfg.precision, cfg.trainer.accelerator)
    with autocast(here.precision, here.device):
        return {"peak_memory": peak, **profile(load_checkpoint(cfg.run_dir)[0].to(here.device))}


def _end_with_runner() -> None:
    """Wait for the end of the standard input, which nothing is written to; then save and end."""
    os.read(sys.stdin.fileno(), 1)  # not by its buffer, which a daemon thread may not hold at exit
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    guard(lambda: main(sys.argv[1]))
