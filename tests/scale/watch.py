"""A user's callback that notes what its rank sees, in `rank-N.jsonl`, and disturbs it where told.

Rows are named by a hash, so that the order of samples can be compared.
"""

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor


class Watch(L.Callback):
    """`stop_at`: the step in which the last rank is told to stop; `block`: a path in the way."""

    def __init__(self, folder: str, stop_at: int | None = None, block: str | None = None) -> None:
        self.folder, self.stop_at, self.block = Path(folder), stop_at, block

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = (self.folder / f"rank-{trainer.global_rank}.jsonl").open("a")
        self.note(pid=os.getpid())
        torch.manual_seed(trainer.global_rank)  # nothing in training draws from it

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Tensor, batch_idx: int
    ) -> None:
        rows = [hashlib.sha256(row.numpy().tobytes()).hexdigest()[:12] for row in batch]
        self.note(step=trainer.global_step, rows=rows, drawn=float(torch.rand(())))
        if self.block is not None:
            (Path(self.block) / "full").mkdir(parents=True, exist_ok=True)
        last = trainer.global_rank == trainer.world_size - 1
        if trainer.global_step + 1 == self.stop_at and last:
            self.stop_at = None
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if pl_module.load is not None:
            biases = [r.e_score_correction_bias.tolist() for r in pl_module.routers.values()]
            self.note(load=pl_module.load.tolist(), biases=biases)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        self.note(kept=sum(t is not None for t in checkpoint["state_dict"].values()))

    def note(self, **found: Any) -> None:
        self.file.write(json.dumps(found) + "\n")
        self.file.flush()
