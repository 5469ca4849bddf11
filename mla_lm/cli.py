"""The command line: compose with Hydra, validate once, say mistakes in one line with status 2.

The only file that knows Hydra. Torch is not imported before the configuration is known to be good.
"""

import difflib
import os
import re
import secrets
import signal
import string
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ValidationError

from mla_lm.config import EvalConfig, RunConfig, YarnConfig
from mla_lm.errors import UserError

STOPPED, INTERRUPTED = 143, 130  # exit status after SIGTERM, Ctrl-C: 128 + the signal's number
CONFIGS = Path(__file__).resolve().parent.parent / "configs"
Config = TypeVar("Config", RunConfig, EvalConfig)
Options = TypeVar("Options", bound=BaseModel)


def load_config(overrides: Sequence[str] = ()) -> RunConfig:
    """Compose and validate a training run, as `python train.py OVERRIDES` would.

    Raises UserError, one line naming the key, its value and the rule.
    """
    return validate(RunConfig, compose("train", overrides))


def compose(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Compose `configs/NAME.yaml` with Hydra overrides into a resolved plain dict."""
    with _explained(name, overrides):
        return resolve(_composed(name, overrides))


def variants(overrides: Sequence[str]) -> Callable[[Mapping[str, int]], RunConfig]:
    """Compose a training run once, for many tries of some of its keys, in milliseconds each.

    `variants(overrides)({key: value})` is `load_config([*overrides, "KEY=VALUE"])`, and raises
    UserError where that would.
    """
    from omegaconf import OmegaConf

    with _explained("train", overrides):
        composed = _composed("train", overrides)
    written: Any = OmegaConf.to_container(composed)  # interpolations as they stand

    def vary(changes: Mapping[str, int]) -> RunConfig:
        with _explained("train", overrides):
            before = {key: reduce(dict.get, key.split("."), written) for key in changes}
            try:
                for key, value in changes.items():
                    OmegaConf.update(composed, key, value)
                return validate(RunConfig, resolve(composed))
            finally:
                for key, value in before.items():
                    OmegaConf.update(composed, key, value)

    return vary


def _composed(name: str, overrides: Sequence[str]) -> Any:
    import hydra

    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        try:
            return hydra.compose(name, list(overrides))
        except ValueError as error:  # a group set to null or to a number
            raise UserError(f"{' '.join(overrides)}: {error}") from None


def resolve(cfg: Any) -> dict[str, Any]:
    """A composed DictConfig as plain containers; a missing `run_dir` or `run_id` gets its own."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("vocabulary_of", _vocabulary_of, replace=True)
    OmegaConf.register_new_resolver("stretch", YarnConfig.stretch, replace=True)
    OmegaConf.register_new_resolver("padded", lambda size: -(-size // 64) * 64, replace=True)
    if "run_dir" in cfg and cfg.run_dir is None:
        cfg.run_dir = time.strftime("runs/%Y-%m-%d_%H-%M-%S")
    if "run_id" in cfg and cfg.run_id is None:
        # letters only: Hydra would read some others as a number when the run is resumed
        cfg.run_id = "".join(secrets.choice(string.ascii_lowercase) for _ in range(8))
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def _vocabulary_of(path: str) -> int:
    from mla_lm.data.tokenizer import vocabulary_of

    return vocabulary_of(path)


def validate(kind: type[Options], values: Mapping[str, Any]) -> Options:
    """The typed configuration, or a UserError for the first mistake."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain_validation(error, kind, values)) from None


def parse_options(kind: type[Options], arguments: Sequence[str]) -> Options:
    """The options of a verb from KEY=VALUE words, each split at its first `=` only.

    An option that takes several values may be given several times.
    """
    values: dict[str, Any] = {}
    for word in arguments:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"{word!r}: an option is written KEY=VALUE")
        field = kind.model_fields.get(key)
        if field is not None and get_origin(field.annotation) is tuple:
            values[key] = (*values.get(key, ()), value)
        else:
            values[key] = value
    return validate(kind, values)


def instantiate(group: str, nodes: Mapping[str, Any]) -> list[Any]:
    """The objects behind the `_target_` nodes of a group; a node set to null is left out."""
    import hydra.utils

    objects = []
    for name, node in nodes.items():
        try:
            objects.append(hydra.utils.instantiate(node, _convert_="all"))
        except Exception as error:  # whatever the user's own class raises
            reason = str(error.__cause__ or error).splitlines()[0]
            raise UserError(f"{group}.{name}: cannot be made ({reason})") from None
    return [made for made in objects if made is not None]


def main(
    task: Callable[[Config, list[str]], None],
    *,
    name: str,
    kind: type[Config],
    passed_on: tuple[str, ...] = (),
) -> None:
    """Run `task(config, overrides)` from the command line; Hydra's own flags go to Hydra.

    Words that begin with one of `passed_on` are not composed here, but are among the overrides.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1):  # a run that has begun takes them over
        signal.signal(number, lambda *_: sys.exit(STOPPED))

    def run(compose_values: Callable[[], dict[str, Any]], overrides: list[str]) -> None:
        guard(lambda: task(validate(kind, compose_values()), overrides))

    arguments = sys.argv[1:]
    passed: list[str] = [word for word in arguments if word.startswith(passed_on)]
    own = [word for word in arguments if word not in passed]
    if not any(argument.startswith("-") for argument in arguments):
        run(lambda: compose(name, own), arguments)
        return

    import hydra

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)
    def hydra_task(cfg: Any) -> None:
        from hydra.core.hydra_config import HydraConfig

        run(lambda: resolve(cfg), [*HydraConfig.get().overrides.task, *passed])

    def run_hydra() -> None:
        with _explained(name, arguments):
            hydra_task()

    sys.argv[1:] = own
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise instead of printing and ending with status 1
    guard(run_hydra)


def guard(action: Callable[[], None]) -> None:
    """Run `action`; a UserError, or a file that cannot be used, ends it with one line, status 2."""
    try:
        action()
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:
            raise
        line = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


@contextmanager
def _explained(name: str, overrides: Sequence[str]) -> Iterator[None]:
    """Turn Hydra's and OmegaConf's errors into a UserError."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain_hydra(name, overrides, error)) from None


def _explain_validation(
    error: ValidationError, kind: type[BaseModel], values: Mapping[str, Any]
) -> str:
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")  # a typo comes first
    context = first.get("ctx", {})
    key = _locate(first["loc"], values)
    if first["type"] == "rule":
        return f"{_join(key, context['key'])}={_shown(context['value'])}: {context['rule']}"
    if first["type"] == "union_tag_invalid":
        return f"{key}.kind={context['tag']}: must be one of {context['expected_tags']}"
    if first["type"] == "extra_forbidden":
        known = {*kind.model_fields, *_dotted_keys(values)} - {key}
        return _unknown_key(key, known)
    if first["type"] == "missing":
        return f"{_join(key, str(first['loc'][-1]))}: must be given"
    rule = first["msg"].replace("Input should", "must", 1)
    return f"{key}={_shown(first['input'])}: {rule}"


def _locate(location: Sequence[int | str], values: Any) -> str:
    """The dotted key of a pydantic location, without the union tags pydantic puts into it."""
    parts = []
    for part in location:
        if isinstance(part, int) and part >= len(values):
            break
        if isinstance(part, int) or part in values:
            parts.append(str(part))
            values = values[part]
    return ".".join(parts)


def _shown(value: object) -> str:
    """A value as YAML would show it."""
    return "null" if value is None else str(value)


def _explain_hydra(name: str, overrides: Sequence[str], error: Exception) -> str:
    text = str(error)
    if match := re.search(r"UserError raised while resolving interpolation: (.*)", text):
        return match[1]
    if match := re.search(r"Could not (?:override|delete)[^']*'([^']+)'", text):
        key = match[1].split("@")[0]
        return _unknown_key(key, _known_keys(name, overrides))
    if match := re.search(
        r"(?:find|load) '([^']+)'.*?Available options in '[^']+':(.*)", text, re.S
    ):
        group, _, choice = match[1].rpartition("/")
        choices = [c for c in re.findall(r"^\s+(\S+)$", match[2], re.M) if not c.startswith("_")]
        return f"{group}={choice}: unknown choice; choose from {', '.join(choices)}"
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        key = match[1] if "." in match[1] else getattr(error, "full_key", match[1])
        return f"{key}: must be given"
    where = getattr(error, "override", None) or getattr(error, "full_key", None)
    return (f"{where}: " if where else "") + " ".join(text.split("\n")[0].split())


def _unknown_key(key: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.0)
    return f"{key}: unknown key; the nearest known one is {nearest[0]}"


def _known_keys(name: str, overrides: Sequence[str]) -> Iterator[str]:
    """The keys of the chosen options, as far as the choices are not what is wrong."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    choices = [o for o in overrides if (CONFIGS / o.partition("=")[0]).is_dir()]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        try:
            composed = hydra.compose(name, choices)
        except HydraException:
            composed = hydra.compose(name)
    return _dotted_keys(OmegaConf.to_container(composed))  # type: ignore[arg-type]


def _dotted_keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield _join(prefix, key)
        if isinstance(value, Mapping):
            yield from _dotted_keys(value, _join(prefix, key))


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key
