"""Two ranks of one run, each with random numbers of its own; a process of `test_ranks.py`.

`python ranks.py RUN_DIR END.json [STEP]` (torchrun's variables): trains, or goes on where the
folder has a checkpoint; the last rank alone is told to stop at STEP.
"""

import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch

from mla_lm.checkpoint.record import Record, newest
from mla_lm.training.checkpoint_io import CheckpointFiles
from mla_lm.training.checkpoints import Checkpoints
from mla_lm.training.module import LanguageModel
from mla_lm.training.random_state import RandomState
from tests.reliability.child import drawn
from tests.training.bookkeeping import TOKENIZER, Case, Loader, micro_batches

RANK, N_RANKS, STEPS = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), 3


class Draws(L.Callback):
    """Moves the gradient by what each rank draws, so that all depend on the numbers of each."""

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        noise = trainer.strategy.reduce(torch.tensor(drawn()), reduce_op="sum")
        pl_module.model.norm.weight.grad.add_(noise)


class TellMe(L.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        first = batch_idx == 2 * (self.step - 1)
        if first and RANK == N_RANKS - 1:
            os.kill(os.getpid(), signal.SIGTERM)


class ResumableLoader(Loader):
    """Goes on behind the batches it has given."""

    def __init__(self, batches: list[torch.Tensor]) -> None:
        super().__init__(batches)
        self.given = 0

    def __iter__(self) -> Any:
        for batch in self.batches[self.given :]:
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given = state["given"]


def main(run_dir: Path, end: Path, *stop: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    case = Case("none", 2, False, False, 1)
    cfg = case.config()
    cfg = cfg.model_copy(update={"optim": cfg.optim.model_copy(update={"lr": 0.01})})
    record = Record.of(cfg, command="", tokenizer=TOKENIZER.json, data={}, environment={})
    torch.manual_seed(0)
    module = LanguageModel(cfg, TOKENIZER, record)
    L.seed_everything(RANK, verbose=False)
    checkpoints = Checkpoints(run_dir / "checkpoints", cfg.checkpoint)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=N_RANKS,
        strategy="ddp",
        max_steps=STEPS,
        max_epochs=-1,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[RandomState(), Draws(), checkpoints, *(TellMe(int(n)) for n in stop)],
        plugins=[CheckpointFiles()],
    )
    loader = ResumableLoader(micro_batches(case, N_RANKS)[RANK::N_RANKS])
    start = newest(run_dir)
    trainer.fit(module, loader, loader, ckpt_path=start, weights_only=True)
    weights = {name: t.flatten().tolist() for name, t in module.state_dict().items()}
    end.write_text(json.dumps({"start": start and start.name, "weights": weights}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
