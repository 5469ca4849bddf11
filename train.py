"""Train a model: `python train.py [group=choice] [key=value]`; `--help` shows examples."""

import os

from mla_lm.config import RunConfig, cli
from mla_lm.errors import UserError, notice


def train(cfg: RunConfig, overrides: list[str]) -> None:
    """Run what `cfg` says, in as many processes as it asks for; `overrides` made it."""
    _require_named(cfg)
    if os.environ.get("RANK", "0") == "0":
        notice("loading torch and lightning")
    from mla_lm.training import processes as ranks
    from mla_lm.training.run import fit

    if not ranks.launched(cfg.trainer, overrides):
        with ranks.joined(cfg.trainer):
            fit(cfg, overrides)


def _require_named(cfg: RunConfig) -> None:
    """Refuse what is named and not there before torch, which takes seconds, is imported."""
    from mla_lm.data.corpora import files

    if cfg.resume not in (None, "auto"):
        cli.require_path("resume", cfg.resume)
    if cfg.init_from is not None:
        cli.require_path("init_from", cfg.init_from)
    if os.path.exists(cfg.run_dir) and not os.path.isdir(cfg.run_dir):
        raise UserError(f"run_dir={cfg.run_dir}: a file of that name exists")
    path = getattr(cfg.data, "path", None)
    if path is not None:
        files.find_files(path, key="data.path")


if __name__ == "__main__":
    cli.main(train, name="train", kind=RunConfig)
