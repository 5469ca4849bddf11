"""Train a model: `python train.py [group=choice] [key=value]`; `--help` shows examples."""

import os
from collections.abc import Sequence

from mla_lm.config import RunConfig, cli
from mla_lm.config.compose import compose, validate
from mla_lm.errors import UserError


def configured(overrides: Sequence[str]) -> RunConfig:
    """The run that the overrides make of the default one, or of the one that they resume."""
    asked = compose("train", overrides)
    if not isinstance(asked["resume"], str):
        return validate(RunConfig, asked)
    if asked["resume"] != "auto":
        cli.require_path("resume", asked["resume"])
        if asked["init_from"] is not None:
            rule = f"only begins a run, and resume={asked['resume']} continues one"
            raise UserError(f"init_from={asked['init_from']}: {rule}")
    from mla_lm.checkpoint.resume import changed

    return changed(asked, overrides)


def train(cfg: RunConfig, overrides: list[str]) -> None:
    """Run what `cfg` says, in as many processes as it asks for; `overrides` made it."""
    _require_named(cfg)
    if os.environ.get("RANK", "0") == "0":
        print("loading torch and lightning", flush=True)
    from mla_lm.training import processes as ranks
    from mla_lm.training.run import fit

    if not ranks.launched(cfg.trainer, overrides):
        with ranks.joined(cfg.trainer):
            fit(cfg, overrides)


def _require_named(cfg: RunConfig) -> None:
    """Refuse what is named and not there before torch, which takes seconds, is imported."""
    from mla_lm.data.corpora import files

    if cfg.init_from is not None:
        cli.require_path("init_from", cfg.init_from)
    if os.path.exists(cfg.run_dir) and not os.path.isdir(cfg.run_dir):
        raise UserError(f"run_dir={cfg.run_dir}: a file of that name exists")
    for key in ("path", "val_path"):
        if (path := getattr(cfg.data, key, None)) is not None:
            files.find_files(path, key=f"data.{key}")


if __name__ == "__main__":
    cli.main(train, name="train", configured=configured)
