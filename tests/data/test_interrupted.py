"""Preparations that are killed, run into each other or meet a full disk: real processes."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from mla_lm.config import DataConfig
from mla_lm.data import PreparedData, Tokenizer, encoder, prepare
from mla_lm.data.encoder import State
from mla_lm.data.shards import digest
from mla_lm.errors import UserError
from tests.data.conftest import (
    corpus_config,
    lasting,
    prepared_folder,
    some_text,
    tokenizer_keys,
    updated,
    write_folder,
    write_rows,
)
from tests.processes import ROOT, environment, run

N_ROWS = 150
AT_ONCE, EVERY = 2_000, 10_000  # characters: some 55 batches, saved every five
PREPARE = f"""
import resource, sys, time, types
package = sys.modules["mla_lm.data"] = types.ModuleType("mla_lm.data")
package.__path__ = ["{ROOT / "mla_lm" / "data"}"]  # without its __init__, which takes torch
from mla_lm import cli
from mla_lm.config import JsonlConfig
from mla_lm.data import encoder
from mla_lm.data.prepare import prepare
from mla_lm.data.tokenizer import Tokenizer

settings, seconds, limit, n_saves = sys.argv[1], *map(float, sys.argv[2:])
encoder.ENCODED_AT_ONCE, encoder.SAVED_EVERY = {AT_ONCE}, {EVERY}
encode, save = Tokenizer.encode_batch, encoder.State.save

def slowly(self, texts):
    global n_saves
    if n_saves == -1:
        print("hanging", flush=True)
        time.sleep(60)
    n_saves -= n_saves == 0  # one batch comes behind the last save
    time.sleep(seconds)
    return encode(self, texts)

def aloud(self, folder):
    global n_saves
    save(self, folder)
    n_saves -= 1
    print("saved", flush=True)

Tokenizer.encode_batch, encoder.State.save = slowly, aloud
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
print("ready", flush=True)
sys.stdin.readline()
cli.guard(lambda: prepare(JsonlConfig.model_validate_json(settings)))
"""
Process = subprocess.Popen[str]


def start(
    cfg: DataConfig, *, seconds: float = 0.0, limit: int = -1, n_saves: float = 1e9, n: int = 1
) -> list[Process]:
    """`n` processes that prepare at once, each batch `seconds` slower, files up to `limit`.

    They hang on the way behind `n_saves`.
    """
    numbers = map(str, (seconds, limit, n_saves))
    words = [sys.executable, "-c", PREPARE, cfg.model_dump_json(), *numbers]
    pipe = subprocess.PIPE
    options: dict[str, Any] = {"cwd": ROOT, "env": environment(), "encoding": "utf-8"}
    started = [Process(words, stdin=pipe, stdout=pipe, stderr=pipe, **options) for _ in range(n)]
    assert [read_line(process) for process in started] == ["ready\n"] * n
    for process in started:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    return started


def read_line(process: Process) -> str:
    assert process.stdout
    return process.stdout.readline()


def finish(process: Process) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def kill_after(cfg: DataConfig, n_saves: int) -> None:
    """`kill -9` between one save and the next."""
    (process,) = start(cfg, n_saves=n_saves)
    while (line := read_line(process)) != "hanging\n":
        assert line
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSON lines of 120 kB of text, every fifth of several pieces."""
    texts = [some_text(60 if seed % 5 else 700, seed=seed) for seed in range(N_ROWS)]
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", texts)


def config(rows: Path, cache: Path) -> DataConfig:
    keys = {"path": rows, "cache_dir": cache, "val_fraction": 0.1}
    return corpus_config("jsonl", tokenizer=tokenizer_keys("bpe"), **keys)


@pytest.fixture
def cfg(rows: Path, tmp_path: Path) -> DataConfig:
    return config(rows, tmp_path / "cache")


@pytest.fixture(scope="module")
def undisturbed(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepare(config(rows, tmp_path_factory.mktemp("undisturbed")))


def unfinished(cfg: DataConfig) -> Path:
    (only,) = Path(cfg.cache_dir).glob("*.tmp")
    return only


def gone_on_behind(out: str) -> int:
    _, behind, number = out.partition("going on behind document ")
    assert behind, out
    return int(number.split()[0])


def assert_as_undisturbed(cfg: DataConfig, undisturbed: PreparedData) -> None:
    """Every file is right, and nothing else lies there."""
    cache, folder = Path(cfg.cache_dir), prepared_folder(cfg)
    assert {p.name for p in cache.iterdir()} <= {folder.name, f"{folder.name}.lock"}
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("sha256")
    assert lasting(manifest) == lasting(undisturbed.manifest)
    files = {p.name for p in folder.iterdir()} - {"manifest.json", "tokenizer.json"}
    shards = [entry for split in ("train", "val") for entry in manifest[split]["shards"]]
    assert files == {entry["path"] for entry in shards}
    assert all(digest(folder / entry["path"]) == entry["sha256"] for entry in shards)


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


class Killed(BaseException):
    """Stands for a kill where a process of its own would take too long."""


@pytest.fixture
def often_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "ENCODED_AT_ONCE", AT_ONCE)
    monkeypatch.setattr(encoder, "SAVED_EVERY", EVERY)


@pytest.fixture
def half_done(cfg: DataConfig, often_saved: None, undisturbed: PreparedData) -> Path:
    """The folder of a preparation killed behind some documents."""
    interrupt(cfg, Tokenizer, "encode_batch", at=13)
    assert 0 < State.load(unfinished(cfg)).documents < N_ROWS
    return unfinished(cfg)


def interrupt(cfg: DataConfig, place: Any, name: str, *, at: int) -> None:
    """Prepare until `place.name` is called for the `at`-th time."""
    original, calls = getattr(place, name), 0

    def counted(*arguments: Any, **keys: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Killed
        return original(*arguments, **keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, counted)
        with pytest.raises(Killed):
            prepare(cfg)


PLACES: list[tuple[Any, str, int]] = [
    (Tokenizer, "encode_batch", 1),
    (Tokenizer, "encode_batch", 30),
    (State, "save", 1),
    (State, "save", 2),
    (State, "save", 5),
    (os, "replace", 1),
    (os, "replace", 3),
    (os, "fsync", 3),
    (os, "fsync", 8),
    (Path, "rename", 1),
    (import_module("mla_lm.data.prepare"), "read_head", 1),
    (import_module("mla_lm.data.prepare"), "write_manifest", 1),
]


@pytest.mark.parametrize(
    ("place", "name", "at"), PLACES, ids=[f"{name} {at}" for _, name, at in PLACES]
)
@pytest.mark.usefixtures("often_saved")
def test_wherever_it_is_interrupted_the_result_is_the_same(
    cfg: DataConfig, undisturbed: PreparedData, place: Any, name: str, at: int
) -> None:
    interrupt(cfg, place, name, at=at)
    assert not [p for p in Path(cfg.cache_dir).glob("*/manifest.json") if ".tmp" not in str(p)]
    prepare(cfg)
    assert_as_undisturbed(cfg, undisturbed)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("garbage", [b"\xff", b"\xff" * 100_001])
def test_garbage_behind_the_noted_position_is_cut_off(
    cfg: DataConfig, half_done: Path, undisturbed: PreparedData, split: str, garbage: bytes
) -> None:
    with (half_done / f"{split}-00000.bin").open("ab") as file:
        file.write(garbage)
    (half_done / f"{split}-00001.bin").write_bytes(garbage)
    prepare(cfg)
    assert_as_undisturbed(cfg, undisturbed)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("progress.json", Path.unlink),
        ("progress.json", truncated),
        ("progress.json", lambda path: path.write_text("")),
        ("progress.json", lambda path: path.write_text("[]")),
        ("progress.json", lambda path: path.write_text("{}")),
        ("progress.json", lambda path: path.write_text("null")),
        ("progress.json", lambda path: path.write_bytes(b"\xff")),
        ("tokenizer.json", Path.unlink),
        ("tokenizer.json", truncated),
        ("tokenizer.json", lambda path: path.write_text("{}")),
    ],
)
def test_without_a_good_note_it_starts_afresh(
    cfg: DataConfig,
    half_done: Path,
    undisturbed: PreparedData,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    name: str,
) -> None:
    damage(half_done / name)
    capsys.readouterr()
    prepare(cfg)
    assert "going on" not in capsys.readouterr().out
    assert_as_undisturbed(cfg, undisturbed)


def test_a_half_written_note_does_not_stay(
    cfg: DataConfig,
    half_done: Path,
    undisturbed: PreparedData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (half_done / "progress.json.new").write_text('{"thres')
    monkeypatch.setattr(encoder, "SAVED_EVERY", 10**9)
    prepare(cfg)
    assert_as_undisturbed(cfg, undisturbed)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_shard_shorter_than_noted_is_named(cfg: DataConfig, half_done: Path, split: str) -> None:
    path = half_done / f"{split}-00000.bin"
    os.truncate(path, 2)
    with pytest.raises(UserError) as caught:
        prepare(cfg)
    assert str(caught.value).startswith(f"{path}: ")
    assert f"delete {half_done}" in str(caught.value)


def test_another_text_under_the_same_name_size_and_time_is_noticed(
    cfg: DataConfig, half_done: Path, tmp_path: Path, rows: Path
) -> None:
    copy = tmp_path / rows.name
    copy.write_bytes(rows.read_bytes().replace(b"self", b"flse", 1))
    times = rows.stat()
    os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(UserError, match="changed since") as caught:
        prepare(updated(cfg, path=copy))
    assert str(caught.value).startswith(f"{copy}: ")
    assert f"{half_done}" in str(caught.value)


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


@pytest.mark.parametrize(
    ("limit", "name"),
    [(2_000, "tokenizer.json"), (12_000, "train-00000.bin"), (40_000, "train-00000.bin")],
)
def test_a_full_disk_is_one_line_and_mended_by_space(
    cfg: DataConfig, undisturbed: PreparedData, limit: int, name: str
) -> None:
    status, _, err = finish(*start(cfg, limit=limit))
    assert status == 2
    assert err.startswith(f"error: {unfinished(cfg) / name}: ")
    assert err.endswith(f": {os.strerror(errno.EFBIG)}\n")
    assert err.count("\n") == 1
    assert not list(Path(cfg.cache_dir).glob("*/manifest.json"))
    prepare(cfg)
    assert_as_undisturbed(cfg, undisturbed)


@pytest.mark.usefixtures("often_saved")
def test_a_disk_that_fails_to_keep_what_was_written_is_named(
    cfg: DataConfig, undisturbed: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left on device") as caught:
            prepare(cfg)
    assert str(caught.value).startswith(str(unfinished(cfg)))
    prepare(cfg)
    assert_as_undisturbed(cfg, undisturbed)


def test_a_cache_that_is_a_file_is_named(rows: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.touch()
    for place in (cache, cache / "below"):
        with pytest.raises(UserError) as caught:
            prepare(config(rows, place))
        assert str(caught.value).startswith(f"{cache}")
        assert "\n" not in str(caught.value)


def refuse(function: Callable[..., Any], inside: Path) -> Callable[..., Any]:
    """`function`, which may not make anything in a folder."""

    def guarded(path: Any, *arguments: Any, **keys: Any) -> Any:
        if Path(path).is_relative_to(inside) and not Path(path).exists():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return function(path, *arguments, **keys)

    return guarded


@pytest.mark.parametrize("exists", [False, True])
def test_a_cache_without_permission_to_write_is_named(
    cfg: DataConfig, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    cache = Path(cfg.cache_dir)
    if exists:
        cache.mkdir()
    for name in ("mkdir", "open"):
        monkeypatch.setattr(os, name, refuse(getattr(os, name), cache))
    with pytest.raises(UserError, match="Permission denied") as caught:
        prepare(cfg)
    assert str(caught.value).startswith(str(cache))
    assert "\n" not in str(caught.value)


@pytest.fixture
def few(tmp_path: Path) -> list[str]:
    """The words for a small corpus."""
    folder = write_folder(tmp_path / "text")
    return ["model=nano", "data=text", f"data.path={folder}", "data.tokenizer.vocab_size=300"]


def test_the_command_prints_what_was_prepared(few: list[str], tmp_path: Path) -> None:
    command = [str(ROOT / "data" / "prepare.py"), *few, f"data.cache_dir={tmp_path / 'cache'}"]
    done = run(*command, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = (p for p in (tmp_path / "cache").iterdir() if p.is_dir())
    manifest = json.loads((folder / "manifest.json").read_text())
    for split in ("train", "val"):
        counts = manifest[split]
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(f"{split} "))
        assert f"{counts['documents']:,} documents" in line
        assert f"{counts['tokens']:,} tokens" in line
    assert done.stdout.endswith(f"in {folder}\n")


def test_the_command_names_a_bad_path(few: list[str], tmp_path: Path) -> None:
    path = tmp_path / "nowhere"
    done = run(str(ROOT / "data" / "prepare.py"), *few, f"data.path={path}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: data.path={path}: no such file")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
