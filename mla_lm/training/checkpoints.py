"""When a run saves: every n optimizer steps and at its end, the newest few kept."""

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from mla_lm.checkpoint import saved
from mla_lm.config import CheckpointConfig


class Checkpoints(ModelCheckpoint):
    """`step-NNNNNN.ckpt` files; the step in the name says which is newest."""

    def __init__(self, folder: Path, cfg: CheckpointConfig) -> None:
        super().__init__(
            dirpath=folder,
            filename="step-{step:06d}",
            auto_insert_metric_name=False,
            monitor="step",
            mode="max",
            save_top_k=cfg.keep,
            enable_version_counter=False,
            every_n_train_steps=cfg.every_n_steps,
            save_on_train_epoch_end=True,  # else the last batch of an epoch waits for validation
        )

    def save_end(self, trainer: L.Trainer) -> Path:
        """Save the end of the run and keep the newest few; the path of the file."""
        assert self.dirpath is not None
        path = Path(self.dirpath) / f"step-{trainer.global_step:06d}.ckpt"
        trainer.save_checkpoint(path)
        for old in saved(path.parent)[self.save_top_k :]:
            old.unlink()
        return path
