"""What Lightning 2.6 leaves out for a resumed run to equal an undisturbed one bit for bit.

Random numbers, and places in which its loops miscount (read in `training_epoch_loop.py`,
`evaluation_loop.py` and `model_checkpoint.py` of 2.6.6): the only code that sets private fields.
"""

import random
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import distributed

from mla_lm.checkpoint.record import RECORD
from mla_lm.training.restore import BATCHES, STEPS, VALIDATION


class ExactResume(L.Callback):
    """Stores every random generator of every rank, and loop positions that Lightning resumes from.

    A validation that was interrupted starts again, with the generators of its beginning.
    """

    def __init__(self) -> None:
        self.restored: list[dict[str, Any]] | None = None
        self.before_validation: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        own = self.before_validation or _generators()
        if not (distributed.is_available() and distributed.is_initialized()):
            return {"ranks": [own]}
        of_ranks: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(of_ranks, own)
        return {"ranks": of_ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises an error of whatever kind for generators that cannot be set."""
        if not state_dict["ranks"]:
            raise ValueError("random generators of no rank")
        own = _generators()
        for state in [*state_dict["ranks"], own]:
            _set_generators(state)
        self.restored = state_dict["ranks"]

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        loop = checkpoint["loops"]["fit_loop"]
        validated, epochs = loop[VALIDATION]["current"], loop["epoch_progress"]["total"]
        if validated["completed"] < validated["ready"]:
            _restart_validation(loop[VALIDATION])
        if epochs["completed"] < epochs["processed"]:
            _finish_epoch(loop)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count in the micro-batches of this run, which may be more or fewer per step."""
        before = checkpoint[RECORD]["config"]["trainer"]["accumulate_grad_batches"]
        for counts in (checkpoint["loops"]["fit_loop"][BATCHES][of] for of in ("total", "current")):
            more = counts["ready"] * trainer.accumulate_grad_batches // before - counts["ready"]
            counts.update({name: n + more for name, n in counts.items()})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ModelCheckpoint):  # resumed, it would save its step once more
                callback._last_global_step_saved = trainer.global_step

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore(trainer.global_rank)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._restore(trainer.global_rank)
        # The step that loggers are told: resumed after a validated epoch it is one too high.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore(trainer.global_rank)
        self.before_validation = _generators()
        # Forget the batches of a validation that was interrupted.
        trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset_on_restart()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.before_validation = None

    def _restore(self, rank: int) -> None:
        of_ranks, self.restored = self.restored, None
        if of_ranks is not None:
            _set_generators(of_ranks[rank % len(of_ranks)])


def _restart_validation(progress: dict[str, Any]) -> None:
    """As in the first batch: a loop that stands in a later one would skip the earlier."""
    before = progress["total"]["completed"] - progress["current"]["completed"]
    for of, n in (("total", before), ("current", 0)):
        progress[of] |= {"ready": n + 1, "started": n + 1, "processed": n, "completed": n}
    progress["is_last_batch"] = False


def _finish_epoch(loop: dict[str, Any]) -> None:
    """As between two epochs: at the end of one, the next would start without its hooks."""
    for of in ("total", "current"):
        epochs = loop["epoch_progress"][of]
        epochs["completed"] = epochs["processed"]
    loop[BATCHES]["is_last_batch"] = False
    steps = loop[STEPS]["optimizer"]
    ended = steps["step"]["current"], steps["zero_grad"]["current"], loop[VALIDATION]["total"]
    for counts in (loop[BATCHES]["current"], *ended):
        counts.update(dict.fromkeys(counts, 0))


def _generators() -> dict[str, Any]:
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    name, keys, *rest = numpy_state
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def _set_generators(state: dict[str, Any]) -> None:
    name, keys, position, *rest = state["numpy"]
    if not 0 <= position <= len(keys):  # which numpy does not check
        raise ValueError(f"numpy's generator is at {position}")
    random.setstate(state["python"])
    np.random.set_state((name, keys, position, *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    if state.get("mps") is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])
