"""Watches a run: names loss spikes and experts without tokens, and draws the load of the experts.

L MoE layers, E experts.
"""

from collections import deque
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import lightning as L
import torch
from torch import Tensor

from mla_lm.evaluation.figures import draw_over_training
from mla_lm.training.module import LanguageModel
from mla_lm.training.plots import FOLDER
from mla_lm.training.publish import publish_picture

COLUMNS = 200  # of the picture


class LossSpikes(L.Callback):
    """Prints a step whose loss is `threshold` standard deviations above the mean of `window` steps.

    Losses are means over the global batch; those that are not finite do not count.
    """

    def __init__(self, window: int, threshold: float) -> None:
        self.threshold = threshold
        self.losses: deque[float] = deque(maxlen=window)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, LanguageModel)
        loss = pl_module.loss
        if loss is None:
            return
        if len(self.losses) == self.losses.maxlen:
            mean, deviation = fmean(self.losses), stdev(self.losses)
            if loss > mean + self.threshold * deviation:
                trainer.print(
                    f"step {trainer.global_step}: loss {loss:.3f} is a spike, the last "
                    f"{len(self.losses)} were {mean:.3f} +- {deviation:.3f}"
                )
        self.losses.append(loss)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses.clear()
        self.losses.extend(state_dict["losses"])


class ExpertLoad(L.Callback):
    """Names an expert without a token for `patience` steps; draws `plots/expert_load.png`.

    Loads stay on their device until the next logged step: a GPU is not waited for in between.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.unread: list[tuple[int, Tensor]] = []  # steps and their loads (L, E)
        self.idle: Tensor | None = None  # (L, E) steps since the last token
        self.sum: Tensor | None = None  # (L, E) load since the last column
        self.steps: list[int] = []  # at the end of each column
        self.loads: list[Tensor] = []  # (L, E) each

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LanguageModel)
        self.print, self.layers = trainer.print, list(pl_module.routers)
        self.steps_per_column = -(-trainer.max_steps // COLUMNS)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, LanguageModel)
        if pl_module.load is not None:
            self.unread.append((trainer.global_step, pl_module.load))
        if pl_module.is_logged:
            self.read()

    def read(self) -> None:
        """Take in the loads of the last steps."""
        unread, self.unread = self.unread, []
        for step, load in unread:
            self.add(step, load.cpu())

    def add(self, step: int, load: Tensor) -> None:
        """Count the load of one step, and name who has been idle."""
        before = torch.zeros_like(load) if self.idle is None else self.idle
        self.idle = torch.where(load == 0, before + 1, 0)
        for layer, expert in (self.idle == self.patience).nonzero().tolist():
            self.print(
                f"step {step}: expert {expert} of {self.layers[layer]} "
                f"has had no token for {self.patience} steps"
            )
        self.sum = load if self.sum is None else self.sum + load
        if step % self.steps_per_column == 0:
            self.steps.append(step)
            self.loads.append(self.sum)
            self.sum = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.read()
        if self.loads and trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / FOLDER / "expert_load.png"
            path.parent.mkdir(exist_ok=True)
            draw_over_training(path, self.steps, torch.stack(self.loads), self.layers)
            publish_picture(trainer.loggers, path, trainer.global_step)

    on_train_end = on_validation_end

    def state_dict(self) -> dict[str, Any]:
        self.read()
        return {"idle": self.idle, "sum": self.sum, "steps": self.steps, "loads": self.loads}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.idle, self.sum = state_dict["idle"], state_dict["sum"]
        self.steps, self.loads = state_dict["steps"], state_dict["loads"]
