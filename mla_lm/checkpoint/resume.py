"""Which checkpoint a command continues, and whether its configuration still fits.

`resume=PATH` composes the overrides stored in the checkpoint plus those on the command line;
what defines the run must come out as it was. In the folder of its run it is the same run, with the
same `run_id`; in another it is a new one.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

from mla_lm.checkpoint.record import (
    CONFIG_FILE,
    RECORD,
    STEP,
    locate,
    newest,
    read,
    run_folder,
    saved,
)
from mla_lm.config import RunConfig
from mla_lm.config.compose import load_config
from mla_lm.config.explain import nearest, shown
from mla_lm.config.words import leaves, quoted
from mla_lm.errors import UserError
from mla_lm.machine import accelerator_type, environment, resolve_precision

NEVER = ("model.", "optim.", "data.kind", "data.val_fraction", "data.tokenizer.")
UNLESS_ALLOWED = ("balance.", "loss.", "data.", "seed", "trainer.accumulate_grad_batches")
FREE = (
    "trainer.devices",
    "trainer.timeout_minutes",
    "trainer.log_every_n_steps",
    "data.cache_dir",
    "data.verify",
    "model.ffn.execution",
)
GLOBAL_BATCH = ("data.batch_size", "trainer.accumulate_grad_batches")  # their product: of a step
GIVEN_ANEW = ("resume=", "resume_allow=", "init_from=", "run_dir=", "run_id=")
TOLD = ("world_size", "threads", "precision", "device", "python", "torch", "lightning")
TRAINING = ("loops", "lr_schedulers", "callbacks", "n_skipped")  # not in a file of weights only


def resolve_resume(cfg: RunConfig, overrides: list[str]) -> tuple[RunConfig, list[str]]:
    """The configuration to run, with `resume` a checkpoint file or None, and its overrides.

    Raises UserError when nothing can be resumed, a fixed key differs, or a fresh run would write
    into a folder that is not empty.
    """
    run_dir = Path(cfg.run_dir)
    named = any(override.lstrip("+").startswith("run_dir=") for override in overrides)
    path = None
    if cfg.resume:
        path = newest(run_dir) if cfg.resume == "auto" else locate(cfg.resume)
    if path is None:
        if cfg.resume == "auto":
            if saved(run_dir / "checkpoints"):
                raise UserError(f"run_dir={run_dir}: holds no checkpoint that is good")
            _refuse_lost_branch(run_dir)
        begun = cfg.resume == "auto" and (run_dir / CONFIG_FILE).exists()
        _require_empty(run_dir, unless=begun)
        return cfg.model_copy(update={"resume": None}), overrides

    record, content = read(path, RECORD, *TRAINING)
    if not content.keys() >= {*TRAINING}:
        raise UserError(f"{path}: holds weights only; begin a run with them by init_from={path}")
    if not named:
        run_dir = run_folder(path)
    in_place = run_dir.resolve() == path.resolve().parent.parent
    if not in_place:
        _require_empty(run_dir)
    elif cfg.resume != "auto" and newest(run_dir.resolve()) != path.resolve():
        raise UserError(f"{path}: {run_dir} holds later checkpoints; name an empty run_dir=DIR")
    merged = [*(o for o in record.overrides if o not in overrides), *overrides]
    merged = [o for o in merged if not o.lstrip("+").startswith(GIVEN_ANEW)]
    if origin := record.run_config().init_from:
        merged.append(quoted("init_from", origin))
    run_id = record.config["run_id"] if in_place else cfg.run_id
    resumed = load_config([*merged, quoted("run_dir", run_dir), f"run_id={run_id}"])
    _refuse_changes(path, record.config, resumed.model_dump(mode="json"), cfg.resume_allow)
    _tell_changes(path, record.environment, environment_of(resumed), cfg.resume_allow)
    print(f"resumed {path} step {content[STEP]}", flush=True)
    return resumed.model_copy(update={"resume": str(path)}), merged


def environment_of(cfg: RunConfig) -> dict[str, str | int]:
    """What the bits of a run here and now depend on besides `cfg`."""
    device = accelerator_type(cfg.trainer.accelerator)
    return environment(resolve_precision(cfg.precision, device), device)


def _require_empty(run_dir: Path, *, unless: bool = False) -> None:
    """Hidden files do not count: the lock, and what a start that was killed was about to write."""
    seen = any(not path.name.startswith(".") for path in run_dir.glob("*"))
    if seen and not unless:
        raise UserError(f"run_dir={run_dir}: not empty; name a new folder, or resume=auto")


def _refuse_lost_branch(run_dir: Path) -> None:
    """A run that was to continue another and has saved nothing is not begun at its first step."""
    try:
        origin = json.loads((run_dir / CONFIG_FILE).read_text())["resume"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if origin is not None:
        raise UserError(f"run_dir={run_dir}: continued {origin} and saved nothing; begin it anew")


def _tell_changes(
    path: Path,
    stored: dict[str, str | int],
    here: dict[str, str | int],
    allowed: tuple[str, ...],
) -> None:
    for key in TOLD:
        before, after = stored.get(key), here[key]
        if before != after and key not in allowed:
            difference = f"{key}={after}: {path} was trained with {before}"
            print(f"warning: {difference}, so not bit for bit", file=sys.stderr)


def _refuse_changes(
    path: Path, stored: dict[str, Any], wanted: dict[str, Any], allowed: tuple[str, ...]
) -> None:
    before, after = dict(leaves(stored)), dict(leaves(wanted))
    for key in allowed:
        if key not in (known := (*before, *after, *TOLD)):
            raise UserError(
                f"resume_allow={shown(key)}: no such key; the nearest known one is "
                f"{nearest(key, known)}"
            )
    same_batch = len({math.prod(of[key] for key in GLOBAL_BATCH) for of in (before, after)}) == 1
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) == after.get(key) or key in FREE:
            continue
        difference = f"{key}={after.get(key)}: {path} was trained with {before.get(key)}"
        if key.startswith(NEVER):
            raise UserError(f"{difference}; start a fresh run")
        divided_anew = key in GLOBAL_BATCH and same_batch
        if key.startswith(UNLESS_ALLOWED) and key not in allowed and not divided_anew:
            raise UserError(f"{difference}; start a fresh run, or pass resume_allow=[{key}]")
        if key.startswith(("trainer.", *GLOBAL_BATCH)) and key not in allowed:
            print(f"warning: {difference}, so not bit for bit", file=sys.stderr)
