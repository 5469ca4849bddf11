"""Pictures and texts for the loggers that can show them."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

STEP = "trainer/global_step"  # Lightning's key of the step in a wandb run


def publish_picture(loggers: Sequence[Logger], path: Path, step: int) -> None:
    """A PNG, under its folder and name."""
    name = f"{path.parent.name}/{path.stem}"
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            logger.experiment.log({name: wandb.Image(str(path)), STEP: step})
        elif isinstance(logger, TensorBoardLogger):
            from matplotlib.image import imread

            logger.experiment.add_image(name, imread(path)[..., :3], step, dataformats="HWC")


def publish_text(loggers: Sequence[Logger], name: str, text: str, step: int) -> None:
    """Plain text, as it is."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import html

            import wandb

            page = wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False)
            logger.experiment.log({name: page, STEP: step})
        elif isinstance(logger, TensorBoardLogger):
            as_code = "\n".join(f"    {line}" for line in text.splitlines())
            logger.experiment.add_text(name, as_code, step)
