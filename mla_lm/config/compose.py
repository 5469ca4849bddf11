"""The command line: compose with Hydra, validate once, say mistakes in one line with status 2.

The only file that knows Hydra. Torch is not imported before the configuration is known to be good.
"""

import os
import secrets
import signal
import string
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial, reduce
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, NoReturn, TypeVar, get_origin

from pydantic import BaseModel, ValidationError

from mla_lm.config import CONFIGS, EvalConfig, RunConfig, YarnConfig
from mla_lm.config import explain as mistakes
from mla_lm.config.words import quoted
from mla_lm.errors import STOPPED, UserError, guard, one_line

OTHERS = (ValueError, RecursionError, OSError)  # that composing raises besides Hydra's own
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
        return hydra.compose(name, list(overrides))


def resolve(cfg: Any) -> dict[str, Any]:
    """A composed DictConfig as plain containers; a missing `run_dir` or `run_id` gets its own."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("vocabulary_of", _vocabulary_of, replace=True)
    OmegaConf.register_new_resolver("stretch", YarnConfig.stretch, replace=True)
    OmegaConf.register_new_resolver("padded", lambda size: -(-size // 64) * 64, replace=True)
    if "run_dir" in cfg and cfg.run_dir is None:
        if cfg.resume == "auto":
            raise UserError("resume=auto: needs run_dir=DIR, the folder of the run to continue")
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
        raise UserError(mistakes.in_values(error, kind, values)) from None


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


def described(kind: type[BaseModel]) -> str:
    """A line for each option of a verb: `key=default`, and what it means."""
    words = {}
    for key, field in kind.model_fields.items():
        default = "" if field.is_required() or field.default is None else field.default
        listed = default if isinstance(default, tuple) else (default,)
        words[f"{key}={','.join(map(str, listed)).lower()}"] = field.description
    width = max(map(len, words))
    return "\n".join(f"  {word:{width}}  {meaning}" for word, meaning in words.items())


def instantiate(group: str, nodes: Mapping[str, Any]) -> list[Any]:
    """The objects behind the `_target_` nodes of a group; a node set to null is left out."""
    import hydra.utils

    objects = []
    for name, node in nodes.items():
        try:
            objects.append(hydra.utils.instantiate(node, _convert_="all"))
        except Exception as error:  # whatever the user's own class raises
            reason = one_line(error.__cause__ or error)
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

    arguments = sys.argv[1:]
    passed: list[str] = [word for word in arguments if word.startswith(passed_on)]
    own = [word for word in arguments if word not in passed]

    def run(job: Job) -> None:
        task(job.settled(kind), [*job.words, *passed])

    guard(lambda: _each(run, kind, _jobs(name, own)))


class Job(NamedTuple):
    """A run that was asked for: what Hydra composed of `words`."""

    name: str
    composed: Any
    words: list[str]

    def settled(self, kind: type[Options]) -> Options:
        """The configuration; UserError for the first mistake."""
        with _explained(self.name, self.words):
            return validate(kind, resolve(deepcopy(self.composed)))


def _each(run: Callable[[Job], None], kind: type[BaseModel], jobs: list[Job]) -> None:
    for job in jobs[1:]:  # a sweep is refused before its first job begins
        job.settled(kind)
    for job in jobs:
        run(job)


def _jobs(name: str, arguments: list[str]) -> list[Job]:
    """One, or with Hydra's own flags as many as they ask for: none after `--help`."""
    if any(argument.startswith("-") for argument in arguments):
        return _by_hydra(name, arguments)
    with _explained(name, arguments):
        return [Job(name, _composed(name, arguments), arguments)]


def _by_hydra(name: str, arguments: list[str]) -> list[Job]:
    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.core.hydra_config import HydraConfig

    def refuse(message: str) -> NoReturn:
        raise UserError(message)

    jobs: list[Job] = []

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)
    def collect(cfg: Any) -> None:
        jobs.append(Job(name, cfg, list(HydraConfig.get().overrides.task)))

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign] # it would print how all flags are used
    if unknown := parser.parse_known_args(arguments)[1]:
        raise UserError(mistakes.unknown_flag(unknown[0], parser._option_string_actions))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise instead of printing and ending with status 1
    try:
        with _explained(name, arguments), TemporaryDirectory() as folder:
            sys.argv[1:] = _with_sweep_in(folder, arguments)
            collect()
    except SystemExit as error:  # status 1, after a line of Hydra's own
        raise SystemExit(2 if error.code else 0) from None
    return jobs


def _with_sweep_in(folder: str, arguments: list[str]) -> list[str]:
    """Hydra's own file of a sweep elsewhere: it has every word, secrets too."""
    if not {"-m", "--multirun"} & set(arguments):
        return arguments
    words = [i for i, word in enumerate(arguments) if "=" in word and not word.startswith("-")]
    at = words[0] if words else len(arguments)
    return [*arguments[:at], quoted("hydra.sweep.dir", folder), *arguments[at:]]


def require_path(key: str, path: str) -> None:
    """Refuse what is not there before torch, which takes seconds, is imported."""
    if not os.path.exists(os.path.expanduser(path)):
        raise UserError(f"{key}={mistakes.shown(path)}: no such file or folder")


@contextmanager
def _explained(name: str, overrides: Sequence[str]) -> Iterator[None]:
    """Turn the errors of a composition into a UserError."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (UserError, BrokenPipeError):
        raise
    except (HydraException, OmegaConfBaseException, *OTHERS) as error:
        known = partial(_known, name, overrides)
        raise UserError(mistakes.in_composition(error, overrides, known)) from None


def _known(name: str, overrides: Sequence[str]) -> Any:
    """What the chosen options hold, as far as the choices are not what is wrong."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    choices = [word for word in overrides if os.path.isdir(CONFIGS / word.partition("=")[0])]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        try:
            composed = hydra.compose(name, choices)
        except HydraException:
            composed = hydra.compose(name)
    return OmegaConf.to_container(composed)
