"""Which checkpoint a command resumes, and whether its configuration still fits.

`resume=PATH` merges the overrides of the command onto the configuration stored in the checkpoint;
what defines the run must come out as it was. In the folder of its run it is the same run, with the
same `run_id`; in another it is a new one.
"""

import io
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

from mla_lm.checkpoint.corpus import settle_corpus
from mla_lm.checkpoint.find import Found, find, find_newest, newest, run_folder, saved
from mla_lm.checkpoint.init_from import EXTEND, resolve_init
from mla_lm.checkpoint.record import CONFIG_FILE, RECORD, STEP, Record, require_corpus
from mla_lm.config import RunConfig
from mla_lm.config.compose import OWN_YAML, compose, validate, with_overrides, with_values
from mla_lm.config.explain import hint, key_of
from mla_lm.config.section import leaves
from mla_lm.config.text import shown, typed
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError
from mla_lm.files import read_object, unhidden
from mla_lm.objective.schedules import lr_multiplier

NEVER = (
    "model.",
    "optim.",
    "data.kind",
    "data.val_fraction",
    "data.tokenizer.",
    "trainer.max_minutes",
)
PLANNED = ("trainer.max_steps", "trainer.val_every_n_steps")  # by `trainer.max_minutes`
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
PER_START = ("resume", "resume_allow", "init_from", "run_dir", "run_id")
BITS = ("world_size", "threads", "precision", "device", "python", "torch", "lightning")
TRAINING = ("loops", "callbacks", "n_skipped")  # not in a file of weights only


class Origin(NamedTuple):
    """The configuration to run, and the record of the checkpoint it resumes or starts from.

    `listed` is that of `prepare`.
    """

    cfg: RunConfig
    record: Record | None
    listed: dict[str, Any] | None = None

    def tokenizer(self) -> Tokenizer | None:
        """The one of the checkpoint."""
        return self.record.own_tokenizer() if self.record else None

    def check(self, environment: Mapping[str, object], manifest: dict[str, Any]) -> None:
        """Refuse to resume on another corpus; warn of what else changes the bits of the run."""
        if self.record is None or self.cfg.resume is None:
            return
        for key in BITS:
            before, here = self.record.environment.get(key), environment[key]
            if before != here and key not in self.cfg.resume_allow:
                _warn(f"{key}={here}: {self.cfg.resume} was trained with {before}")
        require_corpus(self.cfg.resume, self.record, manifest)


def resolve_origin(cfg: RunConfig, overrides: Sequence[str] = ()) -> Origin:
    """`cfg` with what the checkpoint that it resumes or starts from decides.

    `resume` of the result is a checkpoint file, or None for a new run. Raises UserError when
    nothing can be resumed, a fixed key differs, or a new run would write into a folder that is not
    empty.
    """
    run_dir = Path(cfg.run_dir)
    found = _resumed(cfg.resume, run_dir, RECORD, *TRAINING) if cfg.resume else None
    if found is None:
        _require_new(run_dir, auto=cfg.resume == "auto")
        new = cfg.model_copy(update={"resume": None})
        return Origin(*resolve_init(new, overrides)) if new.init_from else Origin(new, None)

    path, record, content = found
    if not content.keys() >= {*TRAINING}:
        start = typed("init_from", str(path))
        raise UserError(f"{path}: holds weights only; start a run with them by {start}")
    if cfg.resume != "auto" and "run_dir" not in map(key_of, overrides):
        run_dir = run_folder(path)
    in_place = run_dir.resolve() == path.resolve().parent.parent
    if not in_place:
        _require_empty(run_dir)
    elif cfg.resume != "auto" and newest(run_dir.resolve()) != path.resolve():
        raise UserError(f"{path}: {run_dir} holds later checkpoints; name an empty run_dir=DIR")
    resumed = _merged(cfg, record, overrides, run_dir, in_place=in_place)
    asked = compose("train", overrides)["data"] if overrides else cfg.data.model_dump()
    data, listed = settle_corpus(resumed.data, record, asked)
    _refuse_changes(path, record.config, resumed.model_dump(mode="json"), cfg.resume_allow)
    print(f"resumed {path} step {content[STEP]}", flush=True)
    _say_rate(record.run_config(), resumed, step=content[STEP])
    own = {"data": data, "resume": str(path), "resume_allow": cfg.resume_allow}
    return Origin(resumed.model_copy(update=own), record, listed)


def changed(asked: dict[str, Any], overrides: Sequence[str]) -> RunConfig:
    """What `train.py` starts: the run that is resumed with the overrides, which composed `asked`.

    Raises UserError as `load_config`.
    """
    with redirect_stderr(io.StringIO()):  # `resolve_origin` names what is damaged
        found = _resumed(asked["resume"], Path(asked["run_dir"]), RECORD)
    if found is None:
        return validate(RunConfig, asked)
    own = {key: asked[key] for key in PER_START}
    return with_values(_with(found.record.run_config(), overrides), own)


def _resumed(resume: str, run_dir: Path, *keys: str) -> Found | None:
    return find_newest(run_dir, *keys) if resume == "auto" else find(resume, *keys)


def _with(stored: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The stored run with the overrides, but for those of a start."""
    merging = [override for override in overrides if key_of(override) not in PER_START]
    keep: tuple[str, ...] = ()
    if stored.init_from:  # whose context was extended when the run started
        merging, keep = [o for o in merging if o != EXTEND], ("model.rope",)
    minutes = compose("train", merging)["trainer"]["max_minutes"]
    if minutes is not None and minutes == stored.trainer.max_minutes:
        merging, keep = [o for o in merging if key_of(o) not in PLANNED], (*keep, *PLANNED)
    return with_overrides(stored, merging, keep=keep)


def _merged(
    cfg: RunConfig, record: Record, overrides: Sequence[str], run_dir: Path, *, in_place: bool
) -> RunConfig:
    """The stored run with the overrides; folder, id, loggers and callbacks are those of now."""
    run_id = record.config["run_id"] if in_place else cfg.run_id
    own: dict[str, Any] = {"run_dir": str(run_dir), "run_id": run_id}
    if own == {"run_dir": cfg.run_dir, "run_id": cfg.run_id}:
        own |= {"logger": cfg.logger, "callbacks": cfg.callbacks}
    else:  # loggers interpolate both
        composed = compose("train", overrides, own)
        own |= {group: composed[group] for group in OWN_YAML}
    return _with(record.run_config(), overrides).model_copy(update=own)


def _say_rate(stored: RunConfig, resumed: RunConfig, *, step: int) -> None:
    """Say how the learning rate jumps where a run becomes longer or shorter."""
    before, after = (
        of.optim.lr * lr_multiplier(step, cfg=of.optim, max_steps=of.trainer.max_steps)
        for of in (stored, resumed)
    )
    if before != after:
        steps = f"{resumed.trainer.max_steps} steps instead of {stored.trainer.max_steps}"
        print(f"schedules of {steps}: the learning rate is {after:.3g}, not {before:.3g}")


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
    if unhidden(run_dir):
        raise UserError(f"run_dir={run_dir}: not empty; name a new folder, or resume=auto")


def _warn(difference: str) -> None:
    print(f"warning: {difference}, so not bit for bit", file=sys.stderr)


def _refuse_changes(
    path: Path, stored: dict[str, Any], wanted: dict[str, Any], allowed: tuple[str, ...]
) -> None:
    before, after = dict(leaves(stored)), dict(leaves(wanted))
    for key in allowed:
        if key not in (known := (*before, *after, *BITS)):
            raise UserError(f"resume_allow={shown(key)}: no such key{hint(key, known)}")
    same_product = len({math.prod(of[key] for key in GLOBAL_BATCH) for of in (before, after)}) == 1
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) == after.get(key) or key in FREE:
            continue
        difference = f"{key}={after.get(key)}: {path} was trained with {before.get(key)}"
        if key.startswith(NEVER):
            raise UserError(f"{difference}; start a new run")
        same_global_batch = key in GLOBAL_BATCH and same_product
        if key.startswith(UNLESS_ALLOWED) and key not in allowed and not same_global_batch:
            raise UserError(f"{difference}; start a new run, or pass 'resume_allow=[{key}]'")
        if key.startswith(("trainer.", *GLOBAL_BATCH)) and key not in allowed:
            _warn(difference)
