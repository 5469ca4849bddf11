"""Runs in processes forked from one that has imported everything: a trial takes a second, not ten.

`train` is what `python train.py WORDS` does; `changes` are made to the process before.
"""

import os
import random
import resource
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

import eval as evaluation
import mla_lm.interop.export  # noqa: F401 # imported once, before processes are forked
import train as application
from mla_lm.__main__ import _run as run_verb
from mla_lm.config import cli
from mla_lm.errors import guard
from mla_lm.generation import Completion  # noqa: F401
from mla_lm.training import plots
from mla_lm.training.module import LanguageModel

Change = Callable[[], None]
SECONDS, BYTES = 20, 2 * 10**9  # of an attempt: of a core, beyond what the imports take


def train(words: Sequence[str], log: str, changes: Sequence[Change] = ()) -> None:
    """Train, standard output and errors to the end of the file `log`."""
    _prepare(log)
    for change in changes:
        change()
    sys.argv = ["train.py", *words]
    cli.main(application.train, name="train", configured=application.configured)


def _prepare(log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    plots.draw = plots.draw_over_training = lambda *_: None  # most of the time of a tiny run


def attempt(words: Sequence[str], place: Path, corpus: Path) -> None:
    """A command in `place`, its time and memory limited; what it writes elsewhere is told."""
    _prepare(str(place / "log"))
    os.chdir(place)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        flags = arguments[2] if event == "open" else os.O_WRONLY
        if event in ("open", "os.mkdir", "os.rename") and flags & (os.O_WRONLY | os.O_RDWR):
            path = Path(os.fsdecode(arguments[0])).resolve()
            if not any(path.is_relative_to(folder) for folder in (place, corpus, "/dev")):
                os.write(2, f"Traceback: wrote {path}\n".encode())

    sys.addaudithook(watch)
    sys.argv = list(words)
    if words[0] == "train.py":
        cli.main(application.train, name="train", configured=application.configured)
    elif words[0] == "eval.py":
        cli.main(evaluation.evaluate, name="eval", configured=evaluation.configured)
    else:
        guard(lambda: run_verb(*words))


def slowly(seconds: float) -> None:
    """Let every batch of a training or validation last at least so long."""
    for name in ("training_step", "validation_step"):
        step = getattr(LanguageModel, name)

        def waiting(self: Any, *args: Any, step: Any = step) -> Any:
            print("waiting", flush=True)
            time.sleep(seconds)
            return step(self, *args)

        setattr(LanguageModel, name, waiting)


def tell_myself(number: int, stage: str, batch: int, step: int | None = None) -> None:
    """Send this process a signal at the beginning of a batch, of any step or of one."""
    original = getattr(LanguageModel, f"{stage}_step")

    def telling(self: Any, tokens: Any, batch_idx: int) -> Any:
        if batch_idx == batch and self.global_step == (step or self.global_step):
            os.kill(os.getpid(), number)
        return original(self, tokens, batch_idx)

    setattr(LanguageModel, f"{stage}_step", telling)


class Draws(L.Callback):
    """Every batch and every validation draws from all generators, and moves a weight by it."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        with torch.no_grad():
            pl_module.model.norm.weight += 1e-3 * drawn()

    def on_validation_batch_start(self, *_: Any) -> None:
        drawn()


def drawn() -> float:
    return random.random() + float(np.random.rand()) + float(torch.rand(()))  # noqa: NPY002
