"""How many processes are started, how they end, what must be equal on all, and what they refuse."""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from mla_lm import load_config
from mla_lm.config import TrainerConfig
from mla_lm.errors import INTERRUPTED, STOPPED, UNREAD, UserError
from mla_lm.training import processes
from mla_lm.training.processes import launched
from mla_lm.training.strategy import strategy_of
from mla_lm.training.trainer import loaders
from tests.processes import free_port, torchrun_variables
from tests.scale.runs import DDP, ended, start, write_text

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def trainer(*words: str) -> TrainerConfig:
    return load_config(["model=nano", "trainer.accelerator=cpu", *words]).trainer


def give_gpus(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n)


def be_rank(monkeypatch: pytest.MonkeyPatch, rank: int, **variables: str) -> None:
    for name, value in {**torchrun_variables(2)[rank], **variables}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Processes and threads each of what torchrun was asked for; it leaves all it can behind."""
    asked = []

    def start(options: list[str]) -> None:
        (n,) = [o.partition("=")[2] for o in options if o.startswith("--nproc-per-node")]
        asked.append((n, os.environ["OMP_NUM_THREADS"]))
        os.environ["LEFT_BEHIND"] = "1"
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    monkeypatch.setattr(run, "parse_args", list)
    monkeypatch.setattr(run, "run", start)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return asked


def test_runs_of_a_sweep_do_not_see_each_other(started: list[tuple[str, str]]) -> None:
    before = dict(os.environ), [signal.getsignal(number) for number in SIGNALS]
    for n in (2, 4):
        assert launched(trainer(f"trainer.devices={n}"), [])
        assert before == (dict(os.environ), [signal.getsignal(number) for number in SIGNALS])
    assert started == [("2", "4"), ("4", "2")]


def test_auto_is_a_process_for_each_gpu(
    started: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    give_gpus(monkeypatch, 4)
    auto = trainer("trainer.devices=auto", "trainer.accelerator=auto")
    assert launched(auto, [])
    assert started == [("4", "2")]
    be_rank(monkeypatch, 0)
    assert not launched(auto, [])  # under torchrun: those it started


@pytest.mark.parametrize(
    ("codes", "status", "line"),
    [
        ({0: STOPPED, 1: 2}, 2, ""),
        ({0: UNREAD, 1: UNREAD}, UNREAD, ""),
        ({0: INTERRUPTED, 1: -15}, INTERRUPTED, ""),
        ({0: 1, 1: -9}, 1, "error: ended: rank 0 with exit code 1, rank 1 with exit code -9\n"),
    ],
)
def test_exit_codes_of_ranks(
    codes: dict[int, int],
    status: int,
    line: str,
    started: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failures: Any = {r: SimpleNamespace(exitcode=c, timestamp=0) for r, c in codes.items()}

    def fail(options: list[str]) -> None:
        error = ChildFailedError.__new__(ChildFailedError)
        error.failures = failures
        raise error

    monkeypatch.setattr(run, "run", fail)
    with pytest.raises(SystemExit) as caught:
        launched(trainer("trainer.devices=2"), [])
    assert caught.value.code == status
    assert capsys.readouterr().err == line


def test_what_differs_between_ranks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(*of_ranks: dict[str, object]) -> None:
        def all_gather(of_all: list[object], own: object) -> None:
            of_all[:] = of_ranks

        monkeypatch.setenv("WORLD_SIZE", str(len(of_ranks)))
        monkeypatch.setattr(distributed, "all_gather_object", all_gather)
        processes.assert_same_on_all_ranks(of_ranks[0])

    compare({"seed": 1, "optim.lr": 0.5}, {"seed": 1, "optim.lr": 0.5})
    with pytest.raises(UserError, match=r"^seed: 2 on rank 2, 1 on rank 0$"):
        compare({"seed": 1}, {"seed": 1}, {"seed": 2})
    with pytest.raises(UserError, match=r"^data corpus: None on rank 1, x on rank 0$"):
        compare({"data corpus": "x"}, {})


def join(*words: str) -> None:
    with processes.joined(trainer(*words)):
        pass


def join_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    be_rank(monkeypatch, 1, MASTER_PORT=str(free_port()))
    join("trainer.timeout_minutes=0.01")


def join_a_port_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        be_rank(monkeypatch, 0, MASTER_PORT=str(taken.getsockname()[1]))
        join()


def join_without_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    be_rank(monkeypatch, 0)
    monkeypatch.delenv("RANK")
    join()


def divide_five_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    data: Any = None  # what is asked for first are the ranks
    loaders(load_config(["model=nano", "data.batch_size=5"]), data)


def launch_on_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    give_gpus(monkeypatch, 1)
    launched(trainer("trainer.devices=4", "trainer.accelerator=auto"), [])


def launch_on_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    launched(trainer("trainer.devices=2", "trainer.accelerator=auto"), [])


def join_from_two_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    be_rank(monkeypatch, 0, LOCAL_WORLD_SIZE="1")
    join("trainer.accelerator=auto")


def shard_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    be_rank(monkeypatch, 0)
    strategy_of(trainer("trainer=fsdp"), "16-mixed")


def launch_on_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    give_gpus(monkeypatch, 0)
    launched(trainer("trainer.devices=4", "trainer.accelerator=gpu"), [])


@pytest.mark.parametrize(
    ("action", "line"),
    [
        (join_nobody, "MASTER_ADDR=127.0.0.1 MASTER_PORT=.* rank 1 cannot join"),
        (join_a_port_in_use, "MASTER_ADDR=127.0.0.1 MASTER_PORT=.* rank 0 cannot join .* in use"),
        (join_without_a_rank, "RANK expected, but not set"),
        (divide_five_rows, "data.batch_size=5: must be a multiple of the 2 processes"),
        (launch_on_one_gpu, "trainer.devices: 4 processes need a GPU each, there are 1"),
        (launch_on_a_mac, "trainer.devices: 2 processes .* there are 1; use fewer, or"),
        (join_from_two_macs, "trainer.devices: 2 processes .* there are 1; use fewer, or"),
        (shard_in_float16, "precision=16-mixed: FSDP2 has no loss scaling; use 32-true or"),
        (launch_on_no_gpu, "trainer.accelerator=gpu: torch finds no CUDA GPU"),
    ],
)
def test_refused_in_one_line(
    action: Callable[[pytest.MonkeyPatch], None], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=line) as caught:
        action(monkeypatch)
    assert "\n" not in str(caught.value)


def fails(place: Path, *words: str) -> str:
    """The only line of errors of a run of two processes."""
    write_text(place.parent / "text.txt")
    done = ended(start(place, *DDP, *words))
    assert done.status == 2, done.err
    (line,) = done.err.splitlines()
    return line


@pytest.mark.slow
def test_what_all_ranks_refuse_is_printed_once(tmp_path: Path) -> None:
    line = fails(tmp_path / "run", "data.batch_size=100000")
    assert line.startswith("error: data.seq_len=32: 200000 sequences of it need 6400001 tokens")


def test_what_rank_zero_cannot_write_ends_all(tmp_path: Path) -> None:
    path = tmp_path / "run/run/checkpoints/step-000010.ckpt"
    line = fails(tmp_path / "run", f"+callbacks.watch.block={path}")
    assert line.startswith(f"error: {path}: cannot be written (")


@pytest.mark.slow
def test_ranks_with_other_configurations(tmp_path: Path) -> None:
    write_text(tmp_path / "text.txt")
    variables = torchrun_variables(2)
    ranks = [
        start(tmp_path / "run", *more, **of_rank)
        for more, of_rank in zip(((), ("optim.lr=0.5",)), variables, strict=True)
    ]
    said = [ended(rank) for rank in ranks]
    assert [done.status for done in said] == [2, 2]
    assert said[0].err == "error: optim.lr: 0.5 on rank 1, 0.002 on rank 0\n"
