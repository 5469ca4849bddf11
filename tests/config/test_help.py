"""`--help` begins with examples; the shell completes groups, options and keys."""

import os
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import IO

import pytest

from mla_lm.__main__ import VERBS
from mla_lm.config import EvalConfig, RunConfig
from tests.processes import ROOT, command, environment, run


@pytest.mark.parametrize(
    ("application", "kind"), [("train.py", RunConfig), ("eval.py", EvalConfig)]
)
def test_help_shows_examples_groups_and_keys(
    application: str, kind: type[RunConfig | EvalConfig], tmp_path: Path
) -> None:
    result = run(application, "--help", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    head, _, rest = result.stdout.partition("== Configuration groups ==")
    title, *examples = head.splitlines()
    assert title.endswith("Examples:")
    assert all(line.startswith(f"  python {application}") for line in examples[:5])
    assert all(len(line) <= 100 for line in examples)
    assert "\nmodel/attention: gqa, mha, mla, mqa\n" in rest
    keys = rest.partition("== Config ==")[2]
    assert all(f"\n{key}:" in keys for key in kind.model_fields)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("application", [["train.py"], ["-m", "mla_lm"]])
def test_a_closed_pipe_ends_it_silently(application: list[str]) -> None:
    """As `--help | head -1` does, now and then."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        assert help_into(closed, application) == (141, "")


@pytest.mark.parametrize("application", [["train.py", "--help"], ["-m", "mla_lm", "help"]])
def test_closed_standard_streams_are_no_error(application: list[str]) -> None:
    script = f"exec {shlex.join(command(*application))} <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", script], env=environment()).returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as disk:
        said = help_into(disk, ["-m", "mla_lm"])
    assert said == (2, "error: standard output: No space left on device\n")


def help_into(out: IO[str], application: list[str]) -> tuple[int, str]:
    result = subprocess.run(
        command(*application, "--help"),
        env=environment(),
        stdout=out,
        stderr=subprocess.PIPE,
        text=True,
    )
    return result.returncode, result.stderr


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("python train.py optim=", ["optim=adamw", "optim=muon"]),
        ("python train.py model/ro", ["model/rope="]),
        ("python train.py optim.l", ["optim.lr="]),
        ("python eval.py cont", ["context="]),
    ],
)
@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_the_shell_completes(line: str, found: list[str], tmp_path: Path) -> None:
    """What the help tells to evaluate, in a real bash."""
    last = len(line.split()) - 1
    script = (
        'eval "$(python train.py -sc install=bash)"\n'
        f"COMP_LINE='{line}' COMP_POINT={len(line)} COMP_CWORD={last} COMP_WORDS=({line})\n"
        'hydra_bash_completion && printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    for name in ("train.py", "eval.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    result = subprocess.run(
        ["bash", "--norc", "-c", script],
        cwd=tmp_path,
        env=environment(PATH=f"{Path(sys.executable).parent}:/usr/bin:/bin"),
        capture_output=True,
        text=True,
    )
    assert result.stdout.split() == found, result.stderr


def test_verbs_are_listed(tmp_path: Path) -> None:
    said = run("-m", "mla_lm", cwd=tmp_path).stdout
    assert all(word in said for word in ("usage", *VERBS))


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_has_every_option(verb: str, tmp_path: Path) -> None:
    said = run("-m", "mla_lm", verb, "--help", cwd=tmp_path).stdout.splitlines()
    assert said[0].startswith(f"`python -m mla_lm {verb} ")
    options = import_module(f"mla_lm.commands.{verb}{'_' * (verb == 'import')}").Options
    for key, field in options.model_fields.items():
        (line,) = [line for line in said if line.startswith(f"  {key}=")]
        assert field.description
        assert line.endswith(f"  {field.description}")
        assert len(line) <= 100
