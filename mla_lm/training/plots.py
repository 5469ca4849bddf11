"""Pictures in the folder of a run, drawn after every validation, and for the loggers.

L MoE layers, E experts.
"""

import html
import textwrap
from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from mla_lm.checkpoint.alike import require_alike
from mla_lm.evaluation.figures import draw_over_training, save
from mla_lm.training.checkpoints import Shown
from mla_lm.training.module import LanguageModel

FOLDER = "plots"
COLUMNS = 200  # of the picture of expert load
STEP = "trainer/global_step"  # Lightning's key of the step in a wandb run
Curves = dict[str, list[tuple[int, float]]]  # by name: step and value
PICTURES = {
    "loss": ("nats per token", ("train/text_loss", "val/loss")),
    "learning_rate": ("learning rate", ("train/lr",)),
    "mtp_acceptance": ("fraction of drafts accepted", ("mtp/acceptance",)),
}


class Plots(Shown):
    """Draws what is logged of `PICTURES`; its points are part of the checkpoint."""

    def __init__(self) -> None:
        self.curves: Curves = defaultdict(list)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, LanguageModel)
        if pl_module.is_logged and pl_module.loss is not None:
            self.add(trainer, "train/text_loss", "train/lr")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.add(trainer, "val/loss", "mtp/acceptance")

    def show(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        if not trainer.is_global_zero:
            return
        for picture, (unit, names) in PICTURES.items():
            curves = {name: self.curves[name] for name in names if self.curves[name]}
            if curves:
                path = _picture(trainer, picture)
                draw(path, unit, curves)
                publish(trainer, f"{FOLDER}/{picture}", path)

    def add(self, trainer: L.Trainer, *names: str) -> None:
        """Keep the newest values, where there are some."""
        for name in names:
            if name in trainer.callback_metrics:
                point = (trainer.global_step, float(trainer.callback_metrics[name]))
                self.curves[name].append(point)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.curves)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, points in state_dict.items():
            self.curves[name] = [(int(step), float(value)) for step, value in points]


class ExpertLoad(Shown):
    """Names an expert without a token for `patience` steps; draws `plots/expert_load.png`.

    Loads stay on their device until the next logged step: a GPU is not waited for in between.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.unread: list[tuple[int, Tensor]] = []  # steps and their loads (L, E)
        self.idle: Tensor | int = 0  # (L, E) steps since the last token
        self.sum: Tensor | int = 0  # (L, E) load since the last column
        self.steps: list[int] = []  # at the end of each column
        self.loads: list[Tensor] = []  # (L, E) each

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, LanguageModel)
        self.n_experts = [len(r.e_score_correction_bias) for r in pl_module.routers.values()]

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
        """Take in the loads of the last steps, and name who has been idle."""
        for step, load in [(step, load.cpu()) for step, load in self.unread]:
            self.idle = torch.where(load == 0, self.idle + 1, 0)
            for layer, expert in (self.idle == self.patience).nonzero().tolist():
                self.print(
                    f"step {step}: expert {expert} of {self.layers[layer]} "
                    f"has had no token for {self.patience} steps"
                )
            self.sum = load + self.sum
            if step % self.steps_per_column == 0:
                self.steps.append(step)
                self.loads.append(self.sum)
                self.sum = 0
        self.unread.clear()

    def show(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        self.read()
        if self.loads and trainer.is_global_zero:
            path = _picture(trainer, "expert_load")
            draw_over_training(path, self.steps, torch.stack(self.loads), self.layers)
            publish(trainer, f"{FOLDER}/expert_load", path)

    def state_dict(self) -> dict[str, Any]:
        self.read()
        return {"idle": self.idle, "sum": self.sum, "steps": self.steps, "loads": self.loads}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        shape = len(self.n_experts), max(self.n_experts, default=0)
        load = torch.zeros(shape, dtype=torch.int64)
        idle, total, n = state_dict["idle"], state_dict["sum"], len(state_dict["loads"])
        fresh = {
            "idle": load if isinstance(idle, Tensor) else 0,
            "sum": load if isinstance(total, Tensor) else 0,
            "steps": [0] * n,
            "loads": [load] * n,
        }
        require_alike(state_dict, fresh, "callbacks.ExpertLoad")
        self.idle, self.sum = idle, total
        self.steps, self.loads = state_dict["steps"], state_dict["loads"]


def publish(trainer: L.Trainer, name: str, shown: Path | str) -> None:
    """Give a picture, a PNG, or a text to the loggers that can show it."""
    step, loggers = trainer.global_step, trainer.loggers
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            if isinstance(shown, Path):
                media: Any = wandb.Image(str(shown))
            else:
                media = wandb.Html(f"<pre>{html.escape(shown)}</pre>", inject=False)
            logger.experiment.log({name: media, STEP: step})
        elif isinstance(logger, TensorBoardLogger) and isinstance(shown, Path):
            from matplotlib.image import imread

            logger.experiment.add_image(name, imread(shown)[..., :3], step, dataformats="HWC")
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(name, textwrap.indent(str(shown), "    "), step)


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
    save(figure, path, dpi=150)


def _picture(trainer: L.Trainer, name: str) -> Path:
    return Path(trainer.default_root_dir) / FOLDER / f"{name}.png"
