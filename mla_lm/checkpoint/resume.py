"""Which checkpoint a command resumes, and whether its configuration still fits.

`resume=PATH` merges the overrides of the command onto the configuration stored in the checkpoint;
what defines the run must come out as it was. In the folder of its run it is the same run, with the
same `run_id`; in another it is a new one.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mla_lm.checkpoint.record import (
    CONFIG_FILE,
    RECORD,
    STEP,
    Record,
    locate,
    newest,
    read,
    run_folder,
    saved,
)
from mla_lm.config import RunConfig
from mla_lm.config.compose import load_config, with_overrides
from mla_lm.config.explain import key_of, nearest, shown
from mla_lm.config.section import leaves
from mla_lm.errors import UserError
from mla_lm.files import read_object
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
GIVEN_ANEW = ("resume", "resume_allow", "init_from", "run_dir", "run_id")
BITS = ("world_size", "threads", "precision", "device", "python", "torch", "lightning")
TRAINING = ("loops", "lr_schedulers", "callbacks", "n_skipped")  # not in a file of weights only


def resolve_resume(cfg: RunConfig, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration to run, with `resume` a checkpoint file or None.

    Raises UserError when nothing can be resumed, a fixed key differs, or a new run would write
    into a folder that is not empty.
    """
    run_dir = Path(cfg.run_dir)
    path = None
    if cfg.resume:
        path = newest(run_dir) if cfg.resume == "auto" else locate(cfg.resume)
    if path is None:
        _require_new(run_dir, auto=cfg.resume == "auto")
        return cfg.model_copy(update={"resume": None})

    record, content = read(path, RECORD, *TRAINING)
    if not content.keys() >= {*TRAINING}:
        raise UserError(f"{path}: holds weights only; start a run with them by init_from={path}")
    if cfg.resume != "auto" and "run_dir" not in map(key_of, overrides):
        run_dir = run_folder(path)
    in_place = run_dir.resolve() == path.resolve().parent.parent
    if not in_place:
        _require_empty(run_dir)
    elif cfg.resume != "auto" and newest(run_dir.resolve()) != path.resolve():
        raise UserError(f"{path}: {run_dir} holds later checkpoints; name an empty run_dir=DIR")
    resumed = _merged(cfg, record, overrides, run_dir, in_place=in_place)
    _refuse_changes(path, record.config, resumed.model_dump(mode="json"), cfg.resume_allow)
    _warn_of_environment(path, record.environment, environment_of(resumed), cfg.resume_allow)
    print(f"resumed {path} step {content[STEP]}", flush=True)
    return resumed.model_copy(update={"resume": str(path)})


def _merged(
    cfg: RunConfig, record: Record, overrides: Sequence[str], run_dir: Path, *, in_place: bool
) -> RunConfig:
    """The stored run with the overrides; folder, id, loggers and callbacks are those of now."""
    run_id = record.config["run_id"] if in_place else cfg.run_id
    own = {"run_dir": str(run_dir), "run_id": run_id}
    if own != {"run_dir": cfg.run_dir, "run_id": cfg.run_id}:  # loggers interpolate both
        cfg = load_config(overrides, **own)
    merging = [override for override in overrides if key_of(override) not in GIVEN_ANEW]
    resumed = with_overrides(record.run_config(), merging)
    return resumed.model_copy(update=own | {"logger": cfg.logger, "callbacks": cfg.callbacks})


def environment_of(cfg: RunConfig) -> dict[str, str | int]:
    """What the bits of a run here and now depend on besides `cfg`."""
    device = accelerator_type(cfg.trainer.accelerator)
    return environment(resolve_precision(cfg.precision, device), device)


def _require_new(run_dir: Path, *, auto: bool) -> None:
    """Refuse to start a run where another one is; `auto` may where it saved nothing."""
    if not auto:
        _require_empty(run_dir)
    elif saved(run_dir / "checkpoints"):
        raise UserError(f"run_dir={run_dir}: holds no checkpoint that is good")
    elif not (run_dir / CONFIG_FILE).exists():
        _require_empty(run_dir)
    elif origin := read_object(run_dir / CONFIG_FILE).get("resume"):
        raise UserError(f"run_dir={run_dir}: resumed {origin} and saved nothing; use a new folder")


def _require_empty(run_dir: Path) -> None:
    """Hidden files do not count: the lock, and what a start that was killed was about to write."""
    if any(not path.name.startswith(".") for path in run_dir.glob("*")):
        raise UserError(f"run_dir={run_dir}: not empty; name a new folder, or resume=auto")


def _warn_of_environment(
    path: Path,
    stored: dict[str, str | int],
    here: dict[str, str | int],
    allowed: tuple[str, ...],
) -> None:
    for key in BITS:
        before, after = stored.get(key), here[key]
        if before != after and key not in allowed:
            difference = f"{key}={after}: {path} was trained with {before}"
            print(f"warning: {difference}, so not bit for bit", file=sys.stderr)


def _refuse_changes(
    path: Path, stored: dict[str, Any], wanted: dict[str, Any], allowed: tuple[str, ...]
) -> None:
    before, after = dict(leaves(stored)), dict(leaves(wanted))
    for key in allowed:
        if key not in (known := (*before, *after, *BITS)):
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
            raise UserError(f"{difference}; start a new run")
        divided_anew = key in GLOBAL_BATCH and same_batch
        if key.startswith(UNLESS_ALLOWED) and key not in allowed and not divided_anew:
            raise UserError(f"{difference}; start a new run, or pass resume_allow=[{key}]")
        if key.startswith(("trainer.", *GLOBAL_BATCH)) and key not in allowed:
            print(f"warning: {difference}, so not bit for bit", file=sys.stderr)
