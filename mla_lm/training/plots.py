"""The curves of a run as pictures in its folder, drawn at every validation and at the end."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning as L

from mla_lm.files import replacing
from mla_lm.training.module import LanguageModel
from mla_lm.training.publish import publish_picture

FOLDER = "plots"
Curves = dict[str, list[tuple[int, float]]]  # by name: step and value
PICTURES = {
    "loss": ("nats per token", ("train/ce", "val/loss")),
    "learning_rate": ("learning rate", ("train/lr",)),
    "mtp_acceptance": ("fraction of drafts accepted", ("mtp/acceptance",)),
}


class Plots(L.Callback):
    """Draws what is logged of `PICTURES`; its points are part of the checkpoint."""

    def __init__(self) -> None:
        self.curves: Curves = defaultdict(list)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, LanguageModel)
        if pl_module.is_logged and pl_module.loss is not None:
            self.add(trainer, "train/ce", "train/lr")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.add(trainer, "val/loss", "mtp/acceptance")
        self.draw(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.draw(trainer)

    def add(self, trainer: L.Trainer, *names: str) -> None:
        """Keep the newest values, where there are some."""
        for name in names:
            if name in trainer.callback_metrics:
                point = (trainer.global_step, float(trainer.callback_metrics[name]))
                if not self.curves[name] or self.curves[name][-1][0] < point[0]:
                    self.curves[name].append(point)

    def draw(self, trainer: L.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / FOLDER
        folder.mkdir(exist_ok=True)
        for picture, (unit, names) in PICTURES.items():
            curves = {name: self.curves[name] for name in names if self.curves[name]}
            if curves:
                draw(folder / f"{picture}.png", unit, curves)
                publish_picture(trainer.loggers, folder / f"{picture}.png", trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {name: [list(point) for point in points] for name, points in self.curves.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, points in state_dict.items():
            self.curves[name] = [(int(step), float(value)) for step, value in points]


def draw(path: Path, unit: str, curves: Curves) -> None:
    """Lines over optimizer steps, points where there are few."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, label=name, marker="o" if len(points) < 20 else None, markersize=4)
    axes.set(xlabel="optimizer step", ylabel=unit)
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
