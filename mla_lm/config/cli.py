"""The command line: `train.py` and `eval.py` through Hydra, the options of a verb without it."""

import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from typing import Any, NoReturn, TypeVar, get_origin

from pydantic import BaseModel

from mla_lm.config import CONFIGS, EvalConfig, RunConfig, explain
from mla_lm.config.compose import explained, validate
from mla_lm.config.secret import public
from mla_lm.config.text import shown
from mla_lm.errors import STOPPED, UserError, guard

Config = TypeVar("Config", RunConfig, EvalConfig)
Options = TypeVar("Options", bound=BaseModel)


def main(
    task: Callable[[Config, list[str]], None],
    *,
    name: str,
    configured: Callable[[Sequence[str]], Config],
    passed_on: tuple[str, ...] = (),
) -> None:
    """Run `task(config, overrides)`; with Hydra's own flags, once for every job of a sweep.

    `configured` makes the configuration of one job of its overrides. Those that begin with one of
    `passed_on` are not for it, they are only handed over.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1):  # a run that has begun takes them over
        signal.signal(number, lambda *_: sys.exit(STOPPED))
    passed: list[str] = [word for word in sys.argv[1:] if word.startswith(passed_on)]
    own = [word for word in sys.argv[1:] if word not in passed]
    sys.argv[1:] = public(sys.argv[1:])  # loggers send it with a run

    def run() -> None:
        has_flags = any(word.startswith("-") for word in own)
        jobs = _hydra_jobs(name, own, configured) if has_flags else [own]
        job: list[str]
        for job in jobs[1:]:  # a sweep is refused before its first job begins
            configured(job)
        for job in jobs:
            task(configured(job), [*job, *passed])

    guard(run)


def _hydra_jobs(
    name: str, arguments: list[str], configured: Callable[[Sequence[str]], object]
) -> list[list[str]]:
    """The overrides of every job that Hydra's flags ask for: none after `--help`."""
    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.core.hydra_config import HydraConfig

    def refuse(message: str) -> NoReturn:
        raise UserError(message)

    jobs: list[list[str]] = []

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)
    def collect(cfg: Any) -> None:
        jobs.append([word.removeprefix("++") for word in HydraConfig.get().overrides.task])

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign] # it would print how all flags are used
    for flag in parser.parse_known_args(arguments)[1]:
        line = explain.not_key_value(flag, arguments)
        try:
            configured(shlex.split(explain.of_flag(flag, arguments)))
        except UserError as error:
            line = f"{line}; {error}" if "unknown key" in str(error) else line
        raise UserError(line)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise instead of printing and ending with status 1
    try:
        with explained(), TemporaryDirectory() as folder:
            if not {"-sc", "--shell-completion"} & set(arguments):
                sys.argv[1:] = explain.checked(arguments)
            if {"-m", "--multirun"} & set(arguments):  # its multirun.yaml would keep secrets
                first = [i for i, word in enumerate(sys.argv) if i and "=" in word[1:]]
                sys.argv.insert(first[0] if first else len(sys.argv), f"hydra.sweep.dir='{folder}'")
            collect()
    except SystemExit as error:  # status 1, after a line of Hydra's own
        raise SystemExit(2 if error.code else 0) from None
    return jobs


def parse_options(kind: type[Options], arguments: Sequence[str]) -> Options:
    """The options of a verb from KEY=VALUE words, each split at its first `=` only.

    An option that takes several values may be given several times.
    """
    values: dict[str, Any] = {}
    given = {word.partition("=")[0] for word in arguments if "=" in word}
    left = [key for key in kind.model_fields if key not in given]
    for word in arguments:
        key, equals, value = word.partition("=")
        if not equals or word.startswith("-"):
            raise UserError(explain.not_key_value(word, arguments, bare=(left or [key])[0]))
        field = kind.model_fields.get(key)
        if field is not None and get_origin(field.annotation) is tuple:
            values[key] = (*values.get(key, ()), value)
        else:
            values[key] = value
    return validate(kind, values)


def describe_options(kind: type[BaseModel]) -> str:
    """A line for each option of a verb: `key=default`, and what it means."""
    lines = {}
    for key, field in kind.model_fields.items():
        default = "" if field.is_required() or field.default is None else field.default
        listed = default if isinstance(default, tuple) else (default,)
        lines[f"{key}={','.join(map(str, listed)).lower()}"] = field.description
    width = max(map(len, lines))
    return "\n".join(f"  {option:{width}}  {meaning}" for option, meaning in lines.items())


def require_path(key: str, path: str) -> None:
    """Refuse what is not there before torch, which takes seconds, is imported."""
    if not os.path.exists(path):
        raise UserError(f"{key}={shown(path)}: no such file or folder")
