"""When a run saves: by steps, by the clock, at its best, at its end, and when told to stop.

A checkpoint is always of whole optimizer steps: of a step that is validated, with the validation,
and of the last step of an epoch, with the end of the epoch.
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
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from mla_lm.checkpoint.record import RECORD, read, saved, step_of
from mla_lm.config import CheckpointConfig
from mla_lm.errors import INTERRUPTED, STOPPED, UserError
from mla_lm.files import remove_temporaries
from mla_lm.training.loop_state import settle
from mla_lm.training.processes import first, n_ranks

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
BEST = "val/loss"
GO_ON, SAVE, STOP = range(3)


class Checkpoints(Checkpoint):
    """`step-NNNNNN.ckpt` files: the newest few, and the one with the lowest validation loss.

    SIGTERM and SIGUSR1 finish the optimizer step, save, and end the process with status 143, Ctrl-C
    with 130; a validation, but for the last, is left to the resumed run. A second signal ends it at
    once; where torchrun passes them on, that is for torchrun to do.
    """

    def __init__(self, folder: Path, cfg: CheckpointConfig, *, repeat: Sequence[str] = ()) -> None:
        """`repeat` are overrides that checkpoints do not store, to be given again on resume."""
        self.folder, self.cfg, self.repeat = folder, cfg, repeat
        self.best_step: int | None = None
        self.best_loss: float | None = None
        self.step, self.saved_step = 0, -1
        self.stops_later = False  # another callback asked for it inside an accumulation window
        self.saved_at = time.monotonic()
        self.signal: signal.Signals | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.step = trainer.global_step
        self.saved_step = self.step if self._path(self.step).exists() else -1
        self.saved_at = time.monotonic()
        first(partial(self._prepare_folder, pl_module))
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning forgets it
            if isinstance(callback, ModelCheckpoint):
                callback._last_global_step_saved = self.step
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Mend what loggers call the step: resumed behind a validated epoch, it is one too high."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        inside_window, self.step = trainer.global_step == self.step, trainer.global_step
        self.stops_later |= trainer.should_stop
        trainer.should_stop = self.stops_later and not inside_window
        if not (inside_window or _validates(trainer) or trainer.is_last_batch):
            self._save_if_due(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget what a validation that was cut short has counted; it is begun anew."""
        trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset_on_restart()

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self._asked(trainer) != STOP:
            return
        if self.saved_step != trainer.global_step:
            self._save(trainer)
        if trainer.global_step < trainer.max_steps:  # the last one, nothing would run again
            self._stop(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss = float(trainer.callback_metrics[BEST])
        if math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
            self.best_step, self.best_loss = trainer.global_step, loss
        if not trainer.is_last_batch:
            self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_last_batch:
            self._save_if_due(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.saved_step != trainer.global_step:  # ended early, by another callback
            self._save(trainer)
        if self.signal is not None:
            self._stop(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"best_step": self.best_step, "best_loss": self.best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_step, self.best_loss = state_dict["best_step"], state_dict["best_loss"]

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        settle(checkpoint["loops"]["fit_loop"])

    def _save_if_due(self, trainer: L.Trainer) -> None:
        step, asked = trainer.global_step, self._asked(trainer)
        remarkable = step in (self.best_step, trainer.max_steps) or trainer.should_stop
        if remarkable or asked != GO_ON or step % self.cfg.every_n_steps == 0:
            self._save(trainer)
        if asked == STOP:
            self._stop(trainer)

    def _asked(self, trainer: L.Trainer) -> int:
        """What any rank was told, or the clock of any says."""
        minutes = (time.monotonic() - self.saved_at) / 60
        timed = self.cfg.every_minutes is not None and minutes >= self.cfg.every_minutes
        own = STOP if self.signal else SAVE if timed else GO_ON
        if trainer.world_size == 1:
            return own
        asked = torch.tensor(own, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(asked, reduce_op="max"))

    def _save(self, trainer: L.Trainer) -> None:
        failure: UserError | None = None
        try:
            trainer.save_checkpoint(self._path(trainer.global_step))
        except UserError as error:
            failure = error
            trainer.strategy.barrier()  # where the others wait for the one that writes
        first(partial(self._settle_save, failure))
        self.saved_step, self.saved_at = trainer.global_step, time.monotonic()

    def _settle_save(self, failure: UserError | None) -> None:
        if failure is not None:
            raise failure
        for old in saved(self.folder)[self.cfg.keep :]:
            if step_of(old) != self.best_step:
                old.unlink()

    def _stop(self, trainer: L.Trainer) -> None:
        run_dir = shlex.quote(str(self.folder.parent))
        words = " ".join([f"run_dir={run_dir}", "resume=auto", *map(shlex.quote, self.repeat)])
        trainer.print(f"stopped and saved at step {trainer.global_step}")
        trainer.print(f"go on with: python train.py {words}")
        raise SystemExit(INTERRUPTED if self.signal == signal.SIGINT else STOPPED)

    def _note(self, number: int, frame: Any) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
        elif n_ranks() == 1:
            os._exit(INTERRUPTED if number == signal.SIGINT else STOPPED)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}.ckpt"

    def _prepare_folder(self, pl_module: L.LightningModule) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_temporaries(self.folder)
        self._put_aside_later_files()
        self._require_space(pl_module)

    def _put_aside_later_files(self) -> None:
        """Rename the damaged ones; a good one is of another process, which this must not undo."""
        later = [path for path in saved(self.folder) if (step_of(path) or 0) > self.step]
        for path in later:
            try:
                read(path, RECORD)
            except UserError:
                path.rename(path.with_suffix(".damaged"))
            else:
                raise UserError(f"{path}: saved since this process looked; resume again")

    def _require_space(self, pl_module: L.LightningModule) -> None:
        """Refuse a run whose checkpoints would not fit: weights and at most two moments each."""
        size = 3 * sum(p.nbytes for p in pl_module.parameters())
        there = sum(path.stat().st_size for path in saved(self.folder))
        needed = (self.cfg.keep + 2) * size - there  # the best, and the one being written
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise UserError(
                f"{self.folder}: {self.cfg.keep + 2} checkpoints need up to {needed / 1e6:,.0f} MB "
                f"more, and {free / 1e6:,.0f} MB are free"
            )


def _validates(trainer: L.Trainer) -> bool:
    """Whether the batch just trained on is followed by a validation."""
    batches = trainer.fit_loop.total_batch_idx + 1
    return trainer.enable_validation and batches % int(trainer.val_check_batch or 1) == 0
