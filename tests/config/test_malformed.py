"""Malformed command lines: status 2 and one line that names the key, before torch is imported.

What `tests/config/test_overrides.py` says of values and rules is not said again here.
"""

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mla_lm import __main__ as verbs
from mla_lm.config import EvalConfig, RunConfig
from mla_lm.config import compose as cli
from mla_lm.config.words import DATA, LOGGER
from tests.config.malformed_lines import ELSEWHERE, REFUSED, TYPOS
from tests.processes import environment, run

SECONDS = 2.0

LINES = [*TYPOS, *ELSEWHERE, *REFUSED]
AS_PROCESSES = (
    "train model.n_layer=3",
    "train --seed=3",
    "train data.path=my.txt",
    "train 'seed=\"a\nb\"'",
    "train resume=nowhere",
    "train -m seed=1,wide",
    "eval ckpt=nowhere",
    "generate ckpt=nowhere prompt=x",
    "ablate ablation=smoke plan=true model.n_head=4",
    "bench suite=none",
)


def start(line: str) -> None:
    """A command as its file starts it."""
    import eval as evaluation
    import train as training

    command, *words = shlex.split(line)
    if command == "train":
        sys.argv = ["train.py", *words]
        cli.main(training.train, name="train", kind=RunConfig)
    elif command == "eval":
        sys.argv = ["eval.py", *words]
        cli.main(evaluation.evaluate, name="eval", kind=EvalConfig, passed_on=DATA + LOGGER)
    else:
        sys.argv = ["mla-lm", command, *words]
        verbs.main()


@pytest.fixture(autouse=True)
def _as_a_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What a command changes for its process is put back."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.chdir(tmp_path)
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set()


def refusal(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says of its line, behind `error: `."""
    with pytest.raises(SystemExit) as caught:
        start(line)
    printed = capsys.readouterr()
    assert caught.value.code == 2
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert len(printed.err) < 500
    assert printed.err.startswith("error: ")
    return printed.err.removeprefix("error: ").rstrip("\n")


def test_there_are_many() -> None:
    assert len(LINES) == len({*LINES}) >= 130
    assert {*AS_PROCESSES} <= {*LINES}


@pytest.mark.parametrize("line", TYPOS)
def test_typo_is_named_with_the_key_that_was_meant(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    key, meant = TYPOS[line]
    assert refusal(line, capsys) == f"{key}: unknown key; the nearest known one is {meant}"


@pytest.mark.parametrize("line", ELSEWHERE)
def test_key_of_another_choice_is_named_with_it(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(line, capsys)
    assert all(part in said for part in (*ELSEWHERE[line], "it belongs to"))


@pytest.mark.parametrize("line", REFUSED, ids=lambda line: line[:60])
def test_mistake_is_named_first(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    named, *said = REFUSED[line]
    found = refusal(line, capsys)
    assert found.startswith(named)
    assert all(part in found for part in said)


def test_none_of_them_needs_torch(tmp_path: Path) -> None:
    code = (
        "import json, sys\n"
        "from tests.config.test_malformed import start\n"
        "for line in json.load(sys.stdin):\n"
        "    try:\n"
        "        start(line)\n"
        "    except SystemExit:\n"
        "        pass\n"
        "    assert 'torch' not in sys.modules, line\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(LINES),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-1000:]
    assert len(result.stderr.splitlines()) == len(LINES)


@pytest.mark.parametrize("line", AS_PROCESSES)
def test_process_says_it_soon(line: str, tmp_path: Path) -> None:
    command, *words = shlex.split(line)
    first = [f"{command}.py"] if command in ("train", "eval") else ["-m", "mla_lm", command]
    seconds = []
    while not seconds or (seconds[0] >= SECONDS and len(seconds) < 2):
        begun = time.perf_counter()
        result = run(*first, *words, cwd=tmp_path)
        seconds.append(time.perf_counter() - begun)
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1
        assert result.stderr.startswith("error: ")
        assert result.stdout == ""
    assert min(seconds) < SECONDS, seconds


def test_a_tokenizer_is_looked_for_on_the_hub(tmp_path: Path) -> None:
    words = ("data/tokenizer=pretrained", "data.tokenizer.path=no/such")
    result = run("train.py", *words, cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: data.tokenizer.path=no/such: no tokenizer (")
    assert "AttributeError" not in result.stderr


def test_a_sweep_runs_every_job() -> None:
    sys.argv = ["train.py", "-m", "seed=1,2", "model=nano"]
    done: list[tuple[int, list[str]]] = []

    def task(cfg: RunConfig, words: list[str]) -> None:
        done.append((cfg.seed, words))

    cli.main(task, name="train", kind=RunConfig)
    assert done == [(seed, [f"seed={seed}", "model=nano"]) for seed in (1, 2)]
