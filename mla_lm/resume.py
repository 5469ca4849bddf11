"""Which checkpoint a command continues, and whether its configuration still fits.

`resume=PATH` composes the overrides stored in the checkpoint plus those on the command line;
what defines the run must come out as it was.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mla_lm.checkpoint import locate, newest, read, run_folder
from mla_lm.cli import load_config
from mla_lm.config import RunConfig
from mla_lm.errors import UserError

NEVER = ("model.", "optim.", "data.kind", "data.val_fraction", "data.tokenizer.")
UNLESS_ALLOWED = ("balance.", "loss.", "data.", "seed", "trainer.accumulate_grad_batches")
FREE = ("data.cache_dir", "data.verify", "model.ffn.execution")
GIVEN_ANEW = ("resume=", "resume_allow=", "run_dir=")
SECTIONS = "model|balance|data|optim|trainer|loss|checkpoint"
CHOICE = re.compile(rf"(({SECTIONS}|callbacks|logger|experiment)(/\w+)*|seed|precision)=[\w-]+")
VALUE = re.compile(rf"[+~]{{0,2}}({SECTIONS})(\.\w+)+(=(?!.*\$).*)?")


def resolve_resume(cfg: RunConfig, overrides: list[str]) -> tuple[RunConfig, list[str]]:
    """The configuration to run, with `resume` a checkpoint file or None, and its overrides.

    Raises UserError when nothing can be resumed, a fixed key differs, or a fresh run would write
    into a folder that is not empty.
    """
    run_dir = Path(cfg.run_dir)
    named = any(override.lstrip("+").startswith("run_dir=") for override in overrides)
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"run_dir={run_dir}: a file of that name exists")
    if cfg.resume == "auto" and not named:
        raise UserError("resume=auto: needs run_dir=DIR, the folder of the run to continue")
    path = newest(run_dir) if cfg.resume == "auto" else _given(cfg.resume)
    if path is None:
        begun = cfg.resume == "auto" and (run_dir / "config.json").exists()
        _require_empty(run_dir, unless=begun)
        return cfg.model_copy(update={"resume": None}), overrides

    record, content = read(path)
    if not named:
        run_dir = run_folder(path)
    if run_dir.resolve() != path.resolve().parent.parent:
        _require_empty(run_dir)
    elif path == Path(str(cfg.resume)) and newest(path.parent.parent) != path:
        raise UserError(f"{path}: {run_dir} holds later checkpoints; name an empty run_dir=DIR")
    merged = [*filter(_may_come_from_a_file, record.overrides), *overrides]
    merged = [o for o in merged if not o.lstrip("+").startswith(GIVEN_ANEW)]
    resumed = load_config([*merged, f"run_dir={run_dir}"])
    _refuse_changes(path, record.config, resumed.model_dump(mode="json"), cfg.resume_allow)
    print(f"resumed {path} step {content['global_step']}")
    return resumed.model_copy(update={"resume": str(path)}), merged


def _given(path: str | None) -> Path | None:
    return None if path is None else locate(path)


def _require_empty(run_dir: Path, *, unless: bool = False) -> None:
    if run_dir.is_dir() and any(run_dir.iterdir()) and not unless:
        raise UserError(f"run_dir={run_dir}: not empty; name a new folder, or resume=auto")


def _may_come_from_a_file(override: str) -> bool:
    """Whether a stored override only chooses among local YAML files or sets a plain value.

    Anything else (Hydra's own keys, packages, interpolations, nodes with a `_target_`) could make
    Hydra import or read what the author of the file wants.
    """
    return bool(CHOICE.fullmatch(override) or VALUE.fullmatch(override))


def _refuse_changes(
    path: Path, stored: dict[str, Any], wanted: dict[str, Any], allowed: tuple[str, ...]
) -> None:
    before, after = dict(_leaves(stored)), dict(_leaves(wanted))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) == after.get(key) or key in FREE:
            continue
        difference = f"{key}={after.get(key)}: {path} was trained with {before.get(key)}"
        if key.startswith(NEVER):
            raise UserError(f"{difference}; start a fresh run")
        if key.startswith(UNLESS_ALLOWED) and key not in allowed:
            raise UserError(f"{difference}; start a fresh run, or pass resume_allow=[{key}]")


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
