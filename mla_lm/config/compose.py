"""From overrides to a typed configuration, and from one typed configuration to another.

Hydra composes the YAML of `configs/`, pydantic validates the result once; below this file a run is
a `RunConfig` and nothing else. Torch is not imported before the configuration is known to be good.
"""

import os
import secrets
import string
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mla_lm.config import CONFIGS, RunConfig, YarnConfig, explain
from mla_lm.config.secret import remember
from mla_lm.config.section import value_at
from mla_lm.config.text import literal, shown
from mla_lm.errors import UserError, one_line
from mla_lm.files import read_object

OWN_YAML = ("logger", "callbacks")  # the user's classes, which no checkpoint stores
UNSET = object()
Model = TypeVar("Model", bound=BaseModel)


def load_config(
    overrides: Sequence[str] = (), *, run_dir: str | None = None, run_id: str | None = None
) -> RunConfig:
    """Compose and validate a training run, as `python train.py OVERRIDES` would.

    `run_dir` and `run_id` win over the overrides. Raises UserError, one line naming the key, its
    value and the rule.
    """
    own = {"run_dir": run_dir, "run_id": run_id}
    given = {key: value for key, value in own.items() if value is not None}
    return validate(RunConfig, compose("train", overrides, given))


def with_values(cfg: Model, changes: Mapping[str, Any]) -> Model:
    """`cfg` with dotted keys set to new values, validated again; UserError as `load_config`."""
    values = cfg.model_dump()
    for key, value in changes.items():
        *sections, last = key.split(".")
        node = values
        for section in sections:
            node = node[section]
        node[last] = value
    return validate(type(cfg), values)


def with_overrides(
    cfg: RunConfig, overrides: Sequence[str], *, keep: Sequence[str] = ()
) -> RunConfig:
    """`cfg` with what `overrides` change of the default run, and every key that they name.

    A group that they choose replaces the section where its `kind` is another, or where it is the
    default one. The keys `keep` stay those of `cfg` unless they are named. Loggers and callbacks
    are those of `overrides`. Raises UserError as `load_config`.
    """
    named = {explain.key_of(override) for override in overrides}
    asked, default = compose("train", overrides), compose("train", [])
    values = _merged(cfg.model_dump(), asked, default, named)
    for key in keep:
        if key not in named:
            section, _, name = key.rpartition(".")
            value_at(values, section)[name] = value_at(cfg, key)
    return validate(RunConfig, values | {group: asked[group] for group in OWN_YAML})


def _merged(
    values: Mapping[str, Any],
    asked: Mapping[str, Any],
    default: Mapping[str, Any],
    named: set[str],
    prefix: str = "",
) -> dict[str, Any]:
    merged = dict(values)
    for name, value in asked.items():
        key, before, usual = f"{prefix}{name}", merged.get(name, UNSET), default.get(name, UNSET)
        if isinstance(value, dict) and isinstance(before, dict):
            replaced = value.get("kind") != before.get("kind") or value == usual
            if not (key in named and replaced):
                below = usual if isinstance(usual, dict) else {}
                merged[name] = _merged(before, value, below, named, f"{key}.")
                continue
        if key in named or value != usual:
            merged[name] = value
    return merged


def compose(
    name: str, overrides: Sequence[str], values: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Compose `configs/NAME.yaml` with Hydra overrides into a resolved plain dict.

    `values`, which may come from files, are set before interpolations are resolved.
    """
    import hydra

    overrides = explain.checked(overrides, application=name)
    with (
        explained(),
        _outside_other_applications(),
        hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)),
    ):
        composed = hydra.compose(name, overrides)
        composed.update({key: literal(str(text)) for key, text in (values or {}).items()})
        return _resolved(composed)


@contextmanager
def _outside_other_applications() -> Iterator[None]:
    """Hydra is free for a composition of its own, also inside an application of the user's."""
    from hydra.core.global_hydra import GlobalHydra

    around = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = around


def _resolved(cfg: Any) -> dict[str, Any]:
    """Plain containers; a missing `run_dir` or `run_id` gets its own.

    The sizes of a preset have reached the options that interpolate them, and go.
    """
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("vocabulary_of", _vocabulary_of, replace=True)
    OmegaConf.register_new_resolver("stretch", YarnConfig.stretch, replace=True)
    OmegaConf.register_new_resolver("steps_of", _steps_of, replace=True)
    OmegaConf.register_new_resolver("padded", lambda size: -(-size // 64) * 64, replace=True)
    if "run_dir" in cfg and cfg.run_dir is None:
        if cfg.resume == "auto":
            raise UserError("resume=auto: needs run_dir=DIR, the folder of the run to continue")
        cfg.run_dir = time.strftime("runs/%Y-%m-%d_%H-%M-%S_") + _letters(4)  # two in one second
    elif str(cfg.get("run_dir")).startswith("~"):
        cfg.run_dir = os.path.expanduser(cfg.run_dir)  # loggers interpolate it
    if "run_id" in cfg and cfg.run_id is None:
        cfg.run_id = _letters(8)
    values: Any = _given(OmegaConf.to_container(cfg, resolve=True))
    if isinstance(values.get("model"), dict):
        values["model"].pop("sizes", None)
    return values


def _given(values: Any) -> Any:
    """What is not missing: pydantic names it after the keys that nobody knows."""
    if not isinstance(values, dict):
        return values
    return {key: _given(value) for key, value in values.items() if value != "???"}


def _letters(n: int) -> str:
    """Random ones; no digits, some of which Hydra would read as a number."""
    return "".join(secrets.choice(string.ascii_lowercase) for _ in range(n))


def _steps_of(minutes: float | None) -> int:
    """The default `trainer.max_steps`: with a budget of minutes, more than fit."""
    return 800 if minutes is None else 10**6


def _vocabulary_of(path: str) -> int:
    from mla_lm.data.tokenizer import vocabulary_of

    return vocabulary_of(os.path.expanduser(path))


def validate(kind: type[Model], values: Mapping[str, Any]) -> Model:
    """The typed configuration, or a UserError for the first mistake; its secrets are hidden."""
    remember(values)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(explain.validation_error(error, kind, values)) from None


def read_as(kind: type[Model], path: Path) -> Model:
    """What this project wrote into a JSON file; UserError naming the file and the first mistake."""
    content = read_object(path)
    try:
        return validate(kind, content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


@contextmanager
def explained() -> Iterator[None]:
    """Turn the errors of a composition into a UserError."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (UserError, BrokenPipeError):
        raise
    except (HydraException, OmegaConfBaseException, ValueError, RecursionError, OSError) as error:
        raise UserError(explain.composition_error(error)) from None


def instantiate(group: str, nodes: Mapping[str, Any]) -> list[Any]:
    """The objects behind the `_target_` nodes of a group; a node set to null is left out."""
    import hydra.utils

    objects = []
    for name, node in nodes.items():
        if "${" in str(node):  # OmegaConf would read it once more
            rule = "must not hold ${, the sign of a variable"
            raise UserError(f"{group}.{name}={shown(node)}: {rule}")
        try:
            objects.append(hydra.utils.instantiate(node, _convert_="all"))
        except Exception as error:  # whatever the user's own class raises
            reason = one_line(error.__cause__ or error)
            raise UserError(f"{group}.{name}: cannot be made ({reason})") from None
    return [made for made in objects if made is not None]


def instantiate_loggers(nodes: Mapping[str, Any]) -> list[Any]:
    """The loggers; what they raise, many only when they are first used, is a UserError."""
    loggers = instantiate("logger", nodes)
    for logger in loggers:
        for name in ("log_hyperparams", "log_metrics", "save", "finalize"):
            setattr(logger, name, _logging_to(logger)(getattr(logger, name)))
    return loggers


@contextmanager
def _logging_to(logger: Any) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each has its own
        raise UserError(f"logger: {type(logger).__name__}: {one_line(error)}") from None
