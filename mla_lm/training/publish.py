"""What loggers are given besides numbers: the configuration without secrets, pictures, texts.

Loggers that have no place for one of them are left out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

STEP = "trainer/global_step"  # Lightning's key of the step in a wandb run


def publish_config(loggers: Sequence[Logger], config: dict[str, Any]) -> None:
    """Values by key, nested."""
    for logger in loggers:
        logger.log_hyperparams(config)


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
