"""When a run saves: by steps, by the clock, at its best, at its end, and when told to stop.

A checkpoint is always of whole optimizer steps. Where the step is validated, as the last one always
is, it is saved after the validation, and where it ends an epoch after the epoch: Lightning resumes
exactly only there.
"""

import math
import os
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint

from mla_lm.checkpoint.alike import require_alike
from mla_lm.checkpoint.find import read, saved, step_of
from mla_lm.checkpoint.record import RECORD
from mla_lm.config import CheckpointConfig
from mla_lm.config.text import train_py, typed
from mla_lm.errors import INTERRUPTED, STOPPED, UserError, warned
from mla_lm.files import remove_temporaries
from mla_lm.training.module import LanguageModel
from mla_lm.training.processes import broadcast_from_rank0, reduce_over_ranks, world_size

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
BEST = "val/loss"
CONTINUE, SAVE, STOP = range(3)  # ranks may be asked for different things: the highest counts


class Shown(L.Callback):
    """What shows people a validated step, once that is saved; where it fails, the run goes on."""

    def show(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        """On all ranks."""


def show(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """Have every callback show the step."""
    assert isinstance(pl_module, LanguageModel)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Shown):
            with warned(type(callback).__name__):
                callback.show(trainer, pl_module)


class Checkpoints(Checkpoint):
    """`step-NNNNNN.ckpt` files: the newest few, and the one with the lowest validation loss.

    SIGTERM and SIGUSR1 finish the optimizer step, save, and end the process with status 143, Ctrl-C
    with 130; a validation, unless it is the last, is left to the resumed run. A second signal ends
    a run of one process at once; several processes are ended by torchrun.
    """

    def __init__(self, folder: Path, cfg: CheckpointConfig, *, repeat: Sequence[str] = ()) -> None:
        """`repeat` are overrides that checkpoints do not store, to be given again on resume."""
        self.folder, self.cfg, self.repeat = folder, cfg, repeat
        self.best_step: int | None = None
        self.best_loss: float | None = None
        self.saved_step = self.validated_step = -1
        self.stop_requested = False  # another callback asked for it inside an accumulation window
        self.saved_at = time.monotonic()
        self.signal: signal.Signals | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = trainer.global_step
        self.saved_step = step if self._path(step).exists() else -1
        self.saved_at = time.monotonic()
        size = sum(p.nbytes for p in pl_module.parameters())
        broadcast_from_rank0(partial(prepare_folder, self.folder, step, size, keep=self.cfg.keep))
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:  # Lightning puts the old handlers back
                signal.signal(number, self._note)

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt):  # before the handlers are set
            signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning has disabled it
            raise exception  # Lightning would end with status 1

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, LanguageModel)
        inside_window = bool(pl_module.micro_losses)
        self.stop_requested |= trainer.should_stop or trainer.global_step >= trainer.max_steps
        trainer.should_stop = self.stop_requested and not inside_window  # Lightning validates
        if not (inside_window or _validates(trainer) or trainer.is_last_batch):
            self._end_step(trainer, pl_module)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self._request(trainer) != STOP:
            return
        if self.saved_step != trainer.global_step:
            self._save(trainer)
        if trainer.global_step < trainer.max_steps:  # nothing would resume the last one
            self._stop(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss = float(trainer.callback_metrics[BEST])
        if math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
            self.best_step, self.best_loss = trainer.global_step, loss
        self.validated_step = trainer.global_step
        if not trainer.is_last_batch:
            self._end_step(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_last_batch:
            self._end_step(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.saved_step != trainer.global_step:  # ended early, by another callback
            self._save(trainer)
        if self.signal is not None:
            self._stop(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"best_step": self.best_step, "best_loss": self.best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        require_alike(state_dict, {"best_step": None, "best_loss": None}, "callbacks.Checkpoints")
        self.best_step, self.best_loss = state_dict["best_step"], state_dict["best_loss"]

    def _end_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save if that is due, then show what was validated, then stop if told to."""
        step, request = trainer.global_step, self._request(trainer)
        remarkable = step in (self.best_step, trainer.max_steps) or trainer.should_stop
        if remarkable or request != CONTINUE or step % self.cfg.every_n_steps == 0:
            self._save(trainer)
        if step == self.validated_step:
            show(trainer, pl_module)
        if request == STOP:
            self._stop(trainer)

    def _request(self, trainer: L.Trainer) -> int:
        """What a signal to any rank, or the clock of any, asks for."""
        minutes = (time.monotonic() - self.saved_at) / 60
        timed = self.cfg.every_minutes is not None and minutes >= self.cfg.every_minutes
        own = STOP if self.signal else SAVE if timed else CONTINUE
        if trainer.world_size == 1:
            return own
        return int(reduce_over_ranks(torch.tensor(own), "max"))

    def _save(self, trainer: L.Trainer) -> None:
        failure: UserError | None = None
        try:
            trainer.save_checkpoint(self._path(trainer.global_step))
        except UserError as error:
            failure = error
            trainer.strategy.barrier()  # at which the others wait for rank zero

        def finish() -> None:
            if failure is not None:
                raise failure
            for old in saved(self.folder)[self.cfg.keep :]:
                if step_of(old) != self.best_step:
                    old.unlink()

        broadcast_from_rank0(finish)
        self.saved_step, self.saved_at = trainer.global_step, time.monotonic()

    def _stop(self, trainer: L.Trainer) -> None:
        command, repeat = shlex.join(train_py()), shlex.join(["resume=auto", *self.repeat])
        trainer.print(f"stopped and saved at step {trainer.global_step}")
        run_dir = typed("run_dir", str(self.folder.parent))
        trainer.print(f"resume with: {command} {run_dir} {repeat}")
        raise SystemExit(INTERRUPTED if self.signal == signal.SIGINT else STOPPED)

    def _note(self, number: int, frame: Any) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
        elif world_size() == 1:
            os._exit(INTERRUPTED if number == signal.SIGINT else STOPPED)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}.ckpt"


def _validates(trainer: L.Trainer) -> bool:
    """Whether the batch just trained on is followed by a validation."""
    due = (trainer.fit_loop.total_batch_idx + 1) % int(trainer.val_check_batch or 1) == 0
    return trainer.enable_validation and (due or trainer.should_stop)


def prepare_folder(folder: Path, step: int, size: int, *, keep: int) -> None:
    """Rename damaged files beyond `step`; UserError for a good one, or for too little space.

    A good one is of another process, since this one resumes from the newest there was. Weights of
    `size` bytes have at most two moments.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder)
    for path in saved(folder):
        if (step_of(path) or 0) <= step:
            continue
        try:
            read(path, RECORD)
        except UserError:
            path.rename(path.with_suffix(".damaged"))
        else:
            raise UserError(f"{path}: saved since this process looked; resume again")
    n = keep + 2  # the best, and the one being written
    needed = n * 3 * size - sum(path.stat().st_size for path in saved(folder))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {n} checkpoints need up to {needed / 1e6:,.0f} MB more, "
            f"and {free / 1e6:,.0f} MB are free"
        )
