"""Preparations that are killed or run into each other: real processes."""

import signal
import time
from pathlib import Path

import pytest

from mla_lm.config import DataConfig
from mla_lm.data import PreparedData, prepare
from mla_lm.data.encoder import State
from tests.data.conftest import N_ROWS, updated
from tests.data.preparing import assert_as_undisturbed, finish, read_line, start, unfinished


def kill_after(cfg: DataConfig, n_saves: int) -> None:
    """`kill -9` between one save and the next."""
    (process,) = start(cfg, n_saves=n_saves)
    while (line := read_line(process)) != "hanging\n":
        assert line
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL


def gone_on_behind(out: str) -> int:
    _, behind, number = out.partition("going on behind document ")
    assert behind, out
    return int(number.split()[0])


@pytest.mark.parametrize("n_saves", [1, 2, 3, 4])
def test_a_killed_preparation_is_gone_on_with(
    cfg: DataConfig, undisturbed: PreparedData, capsys: pytest.CaptureFixture[str], n_saves: int
) -> None:
    kill_after(cfg, n_saves)
    noted = State.load(unfinished(cfg))
    assert len(list(Path(cfg.cache_dir).glob("*/manifest.json"))) == 0
    assert (noted.documents == 0) == (n_saves == 1)  # the first is right behind the head
    written = sum(p.stat().st_size for p in unfinished(cfg).glob("*.bin"))
    assert written > 2 * (noted.train.tokens + noted.val.tokens)  # killed on the way to the next
    prepare(updated(cfg, verify="full"))
    out = capsys.readouterr().out
    assert gone_on_behind(out) == noted.documents
    assert "waiting" not in out
    assert_as_undisturbed(cfg, undisturbed)


def test_killed_again_and_again_it_gets_there(
    cfg: DataConfig, undisturbed: PreparedData, capsys: pytest.CaptureFixture[str]
) -> None:
    kill_after(cfg, 3)
    first = State.load(unfinished(cfg)).documents
    kill_after(cfg, 2)
    second = State.load(unfinished(cfg)).documents
    assert 0 < first < second < N_ROWS
    status, out, err = finish(*start(cfg))
    assert (status, err) == (0, "")
    assert gone_on_behind(out) == second
    assert_as_undisturbed(cfg, undisturbed)


def test_killed_at_any_moment_it_gets_there(cfg: DataConfig, undisturbed: PreparedData) -> None:
    for seconds in (0.03, 0.15, 0.3, 0.45):
        (process,) = start(cfg, seconds=0.02)
        time.sleep(seconds)
        process.kill()
        assert finish(process)[0] in (-signal.SIGKILL, 0)
    prepare(updated(cfg, verify="full"))
    assert_as_undisturbed(cfg, undisturbed)


@pytest.mark.parametrize("n_processes", [2, 3])
def test_processes_at_once_make_one_good_copy(
    cfg: DataConfig, undisturbed: PreparedData, n_processes: int
) -> None:
    results = [finish(process) for process in start(cfg, seconds=0.01, n=n_processes)]
    assert [(status, err) for status, _, err in results] == [(0, "")] * n_processes
    outs = [out for _, out, _ in results]
    assert sum("preparing" in out for out in outs) == 1
    assert sum("waiting for another process" in out for out in outs) >= 1
    assert_as_undisturbed(cfg, undisturbed)


def test_one_that_waits_takes_over_from_a_killed_one(
    cfg: DataConfig, undisturbed: PreparedData
) -> None:
    (first,) = start(cfg, seconds=0.3)
    assert [read_line(first), read_line(first)][1] == "saved\n"
    (second,) = start(cfg)
    assert read_line(second).startswith("waiting for another process")
    first.kill()
    finish(first)
    status, out, err = finish(second)
    assert (status, err) == (0, "")
    assert "going on behind document" in out
    assert_as_undisturbed(cfg, undisturbed)
