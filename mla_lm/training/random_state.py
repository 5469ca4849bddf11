"""The random numbers of a run go on where they were: every generator, on every rank."""

import random
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import distributed


class RandomState(L.Callback):
    """Stores all generators in the checkpoint, restores them where the epoch or its batches resume.

    During a validation the state is that of its beginning: one that was cut short is begun anew.
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
        self.restored = state_dict["ranks"]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore(trainer.global_rank)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._restore(trainer.global_rank)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore(trainer.global_rank)
        self.before_validation = _generators()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.before_validation = None

    def _restore(self, rank: int) -> None:
        of_ranks, self.restored = self.restored, None
        if of_ranks is None:
            return
        state = of_ranks[rank % len(of_ranks)]
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers.tolist()), gauss))
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])


def _generators() -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    name, keys, *rest = numpy_state
    return {
        "python": [version, torch.tensor(numbers), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }
