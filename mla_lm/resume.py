"""Which checkpoint a command continues, and whether its configuration still fits.

`resume=PATH` composes the overrides stored in the checkpoint plus those on the command line;
what defines the run (model, data, seed, global batch) must come out as it was.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mla_lm.checkpoint import locate, newest, read
from mla_lm.cli import load_config
from mla_lm.config import RunConfig
from mla_lm.errors import UserError

FIXED = ("model.", "data.", "seed", "trainer.accumulate_grad_batches")
FREE = ("data.cache_dir",)
STARTERS = ("resume=", "resume_allow=", "run_dir=")


def resolve_resume(cfg: RunConfig, overrides: list[str]) -> tuple[RunConfig, list[str]]:
    """The configuration to run, with `resume` a checkpoint file or None, and its overrides.

    Raises UserError when nothing can be resumed, a fixed key differs, or a fresh run would write
    into a folder that is not empty.
    """
    run_dir = Path(cfg.run_dir)
    if cfg.resume == "auto":
        if not any(override.startswith("run_dir=") for override in overrides):
            raise UserError("resume=auto: needs run_dir=DIR, the folder of the run to continue")
        path = newest(run_dir)
    else:
        path = locate(cfg.resume) if cfg.resume else None
    if path is None:
        if run_dir.is_dir() and any(os.scandir(run_dir)):
            raise UserError(
                f"run_dir={run_dir}: the folder is not empty; continue with resume=auto"
            )
        return cfg.model_copy(update={"resume": None}), overrides

    record, content = read(path)
    if not any(override.startswith("run_dir=") for override in overrides):
        run_dir = path.resolve().parent.parent
    merged = [
        *(o for o in record.overrides if not o.startswith(STARTERS)),
        *(o for o in overrides if not o.startswith(STARTERS)),
    ]
    resumed = load_config([*merged, f"run_dir={run_dir}"])
    _refuse_changes(path, record.config, resumed.model_dump(mode="json"), cfg.resume_allow)
    print(f"resumed {path} step {content['global_step']}")
    return resumed.model_copy(update={"resume": str(path)}), merged


def _refuse_changes(
    path: Path, stored: dict[str, Any], wanted: dict[str, Any], allowed: tuple[str, ...]
) -> None:
    before, after = dict(_leaves(stored)), dict(_leaves(wanted))
    for key in sorted(before.keys() | after.keys()):
        fixed = key.startswith(FIXED) and key not in FREE and key not in allowed
        if fixed and before.get(key) != after.get(key):
            raise UserError(
                f"{key}={after.get(key)}: {path} was trained with {before.get(key)}; "
                f"start a fresh run, or pass resume_allow=[{key}]"
            )


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
