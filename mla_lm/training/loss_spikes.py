"""Watches the loss of a run: names a step whose loss lies far above those just before."""

from collections import deque
from statistics import fmean, stdev
from typing import Any

import lightning as L

from mla_lm.training.module import LanguageModel


class LossSpikes(L.Callback):
    """Prints a step whose loss is `threshold` standard deviations above the mean of `window`.

    Of finite losses only, means over the global batch; nothing is said before the window is full.
    """

    def __init__(self, window: int, threshold: float) -> None:
        if not isinstance(window, int) or window < 2:
            raise ValueError(f"window={window} must be a number of steps, at least 2")
        if not threshold > 0:
            raise ValueError(f"threshold={threshold} must be a positive number")
        self.threshold = threshold
        self.losses: deque[float] = deque(maxlen=window)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, idx: int
    ) -> None:
        assert isinstance(pl_module, LanguageModel)
        loss = pl_module.loss
        if loss is None:
            return
        if len(self.losses) == self.losses.maxlen:
            mean, spread = fmean(self.losses), stdev(self.losses)
            if loss > mean + self.threshold * spread:
                trainer.print(
                    f"step {trainer.global_step}: loss {loss:.3f} is a spike, the last "
                    f"{len(self.losses)} were {mean:.3f} +- {spread:.3f}"
                )
        self.losses.append(loss)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses.clear()
        self.losses.extend(state_dict["losses"])
