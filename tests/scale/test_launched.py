"""How many processes are started, with what, and how the one that starts them ends."""

import os
import signal

import pytest
import torch
from torch.distributed import run

from mla_lm import load_config
from mla_lm.config import TrainerConfig
from mla_lm.errors import INTERRUPTED, STOPPED, UNREAD, UserError
from mla_lm.training.processes import BY_TORCHRUN, _explain, launched
from tests.scale.runs import by_hand


def trainer(*words: str) -> TrainerConfig:
    return load_config(["model=nano", *words]).trainer


def give_gpus(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Processes and threads each of what torchrun was asked for; it leaves all it can behind."""
    asked = []

    def start(words: list[str]) -> None:
        (n,) = [word.partition("=")[2] for word in words if word.startswith("--nproc-per-node")]
        asked.append((n, os.environ["OMP_NUM_THREADS"]))
        os.environ["LEFT_BEHIND"] = "1"
        for number in BY_TORCHRUN:
            signal.signal(number, signal.SIG_IGN)

    monkeypatch.setattr(run, "parse_args", list)
    monkeypatch.setattr(run, "run", start)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return asked


def test_runs_of_a_sweep_do_not_see_each_other(started: list[tuple[str, str]]) -> None:
    before = dict(os.environ), [signal.getsignal(number) for number in BY_TORCHRUN]
    for n in (2, 4):
        assert launched(trainer(f"trainer.devices={n}", "trainer.accelerator=cpu"), [])
        assert before == (dict(os.environ), [signal.getsignal(number) for number in BY_TORCHRUN])
    assert started == [("2", "4"), ("4", "2")]


def test_auto_is_one_a_gpu(started: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    give_gpus(monkeypatch, 4)
    assert launched(trainer("trainer.devices=auto"), [])
    assert started == [("4", "2")]


def test_auto_is_what_torchrun_started(monkeypatch: pytest.MonkeyPatch) -> None:
    give_gpus(monkeypatch, 8)
    for name, value in by_hand(0, 1).items():
        monkeypatch.setenv(name, value)
    assert not launched(trainer("trainer.devices=auto"), [])


@pytest.mark.parametrize(
    ("n_gpus", "words", "line"),
    [
        (1, (), "trainer.devices: 4 processes need a GPU each, there are 1"),
        (0, ("trainer.accelerator=gpu",), "trainer.accelerator=gpu: torch finds no CUDA GPU"),
    ],
)
def test_gpus_that_are_not_there(
    n_gpus: int,
    words: tuple[str, ...],
    line: str,
    started: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    give_gpus(monkeypatch, n_gpus)
    with pytest.raises(UserError, match=line):
        launched(trainer("trainer.devices=4", *words), [])
    assert not started


@pytest.mark.parametrize(
    ("statuses", "status", "line"),
    [
        ({0: 1, 1: 2}, 2, ""),
        ({0: -9, 1: 2}, 2, ""),
        ({0: STOPPED, 1: 2}, 2, ""),
        ({0: UNREAD, 1: 2}, UNREAD, ""),
        ({0: STOPPED, 1: STOPPED}, STOPPED, ""),
        ({0: INTERRUPTED, 1: -15}, INTERRUPTED, ""),
        ({0: 1, 1: -9}, 1, "error: rank 1 was killed by signal 9\n"),
        ({0: STOPPED, 1: -9}, 1, "error: rank 1 was killed by signal 9\n"),
        ({0: -15, 1: 1}, 1, "error: rank 1 ended with status 1\n"),
    ],
)
def test_the_reason_is_that_of_the_rank_that_has_one(
    statuses: dict[int, int], status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        _explain(statuses)
    assert caught.value.code == status
    assert capsys.readouterr().err == line
