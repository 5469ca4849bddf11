"""Preparations that are killed, meet a full disk or run into each other: what must be left."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from mla_lm.config import DataConfig
from mla_lm.data import PreparedData, encode, prepare
from mla_lm.files import digest
from tests.data.conftest import (
    corpus_config,
    lasting,
    one_line,
    prepared_folder,
    some_text,
    tokenizer_keys,
    updated,
    write_rows,
)
from tests.processes import ROOT, environment

BLOCK, BATCH = 10_000, 4  # characters, pieces: some 12 shards of each split
PREPARE = f"""
import resource, sys, time
from mla_lm.config import JsonlConfig
from mla_lm.data import encode, prepare
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import guard

settings, seconds, limit = sys.argv[1], *map(float, sys.argv[2:])
encode.BLOCK, encode.BATCH = {BLOCK}, {BATCH}
encode_batch, write_manifest = Tokenizer.encode_batch, encode.write_manifest

def slowly(self, texts):
    time.sleep(seconds)
    return encode_batch(self, texts)

def aloud(folder, manifest):
    write_manifest(folder, manifest)
    print("saved", flush=True)

Tokenizer.encode_batch, encode.write_manifest = slowly, aloud
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
print("ready", flush=True)
sys.stdin.readline()
guard(lambda: prepare(JsonlConfig.model_validate_json(settings)))
"""
Process = subprocess.Popen[str]
PREPARE_MODULE = import_module("mla_lm.data.prepare")


class Killed(BaseException):
    """Stands for a kill where a process of its own would take too long."""


def config_of(rows: Path, cache: Path) -> DataConfig:
    keys = {"path": rows, "cache_dir": cache, "val_fraction": 0.1}
    return corpus_config("jsonl", tokenizer=tokenizer_keys("bpe"), **keys)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSON lines of 120 kB of text, every fifth of several pieces."""
    texts = [some_text(60 if seed % 5 else 700, seed=seed) for seed in range(150)]
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", texts)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "BLOCK", BLOCK)
    monkeypatch.setattr(encode, "BATCH", BATCH)


@pytest.fixture
def cfg(rows: Path, tmp_path: Path) -> DataConfig:
    return config_of(rows, tmp_path / "cache")


@pytest.fixture(scope="module")
def undisturbed(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """What preparing the rows gives where nothing goes wrong."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "BLOCK", BLOCK)
        return prepare(config_of(rows, tmp_path_factory.mktemp("undisturbed")))


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


def unfinished(cfg: DataConfig) -> Path:
    (only,) = Path(cfg.cache_dir).glob("*.tmp")
    return only


@pytest.fixture
def half_done(cfg: DataConfig) -> Path:
    """The folder of a preparation killed behind three blocks."""
    interrupt(cfg, encode, "write_manifest", at=4)
    return unfinished(cfg)


def assert_as_undisturbed(cfg: DataConfig, undisturbed: PreparedData) -> None:
    """Every file is right, and nothing else lies there."""
    cache, folder = Path(cfg.cache_dir), prepared_folder(cfg)
    assert {p.name for p in cache.iterdir()} <= {folder.name, f"{folder.name}.lock"}
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("sha256")
    assert lasting(manifest) == lasting(undisturbed.manifest)
    files = {p.name for p in folder.iterdir()} - {"manifest.json", "tokenizer.json"}
    shards = [entry for split in ("train", "val") for entry in manifest[split]["shards"]]
    assert len(shards) > 15
    assert files == {entry["path"] for entry in shards}
    assert all(digest(folder / entry["path"]) == entry["sha256"] for entry in shards)


PLACES: list[tuple[Any, str, int, int]] = [  # and how many manifests have been written by then
    (PREPARE_MODULE, "choose_split", 1, 0),
    (PREPARE_MODULE, "write_manifest", 1, 0),
    (encode, "_encode_batch", 1, 1),
    (encode, "_encode_batch", 30, 7),
    (encode, "write_shard", 4, 2),
    (encode, "write_manifest", 5, 5),
    (os, "fsync", 20, 3),
    (os, "replace", 3, 1),
    (Path, "rename", 1, 9),
]


@pytest.mark.parametrize(
    ("place", "name", "at", "finished"), PLACES, ids=[f"{p[1]} {p[2]}" for p in PLACES]
)
def test_wherever_it_is_interrupted_finished_shards_stay(
    cfg: DataConfig, undisturbed: PreparedData, place: Any, name: str, at: int, finished: int
) -> None:
    interrupt(cfg, place, name, at=at)
    assert not [p for p in Path(cfg.cache_dir).glob("*/manifest.json") if ".tmp" not in str(p)]
    counted = []
    if finished:
        manifest = json.loads((unfinished(cfg) / "manifest.json").read_text())
        counted = [s for split in ("train", "val") for s in manifest[split]["shards"]]
        assert bool(counted) == (finished > 1)
    times = [(unfinished(cfg) / s["path"]).stat().st_mtime_ns for s in counted]
    prepare(cfg)
    assert [(prepared_folder(cfg) / s["path"]).stat().st_mtime_ns for s in counted] == times
    assert_as_undisturbed(cfg, undisturbed)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "train-00001.bin"])
@pytest.mark.parametrize("damage", [Path.unlink, truncated, lambda path: path.write_bytes(b"{}")])
def test_from_damaged_files_it_starts_anew(
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
    assert "resuming" not in capsys.readouterr().out
    assert_as_undisturbed(cfg, undisturbed)


def test_another_text_under_the_same_name_size_and_time_is_noticed(
    cfg: DataConfig, half_done: Path, tmp_path: Path, rows: Path
) -> None:
    copy = tmp_path / rows.name
    copy.write_bytes(rows.read_bytes().replace(b"self", b"flse", 1))
    shutil.copystat(rows, copy)
    said = one_line(lambda: prepare(updated(cfg, path=copy)))
    assert said == f"{copy}: changed since {half_done} was begun; delete {half_done}"


def start(cfg: DataConfig, *, seconds: float = 0.0, limit: int = -1, n: int = 1) -> list[Process]:
    """`n` processes that prepare at once, each batch `seconds` slower, files up to `limit`."""
    words = [sys.executable, "-c", PREPARE, cfg.model_dump_json(), str(seconds), str(limit)]
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


def test_killed_again_and_again_it_gets_there(cfg: DataConfig, undisturbed: PreparedData) -> None:
    """`kill -9` behind two more blocks each time; another process waits for the last one."""
    resumed = []
    for _ in range(3):
        (process,) = start(cfg, seconds=0.02)
        resumed.append(read_line(process))
        while read_line(process) != "saved\n":
            pass
        if len(resumed) == 3:
            (waiting,) = start(cfg)
            assert read_line(waiting).startswith("waiting for another process")
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL
    behind = [int(line.split()[-1]) for line in resumed if "resuming behind piece" in line]
    assert len(behind) == 2
    assert 0 < behind[0] < behind[1]
    status, out, err = finish(waiting)
    assert (status, err) == (0, "")
    assert "resuming behind piece" in out
    assert_as_undisturbed(cfg, undisturbed)
    prepare(updated(cfg, verify="full"))


def test_processes_at_once_make_one_good_copy(cfg: DataConfig, undisturbed: PreparedData) -> None:
    results = [finish(process) for process in start(cfg, seconds=0.01, n=3)]
    assert [(status, err) for status, _, err in results] == [(0, "")] * 3
    outs = [out for _, out, _ in results]
    assert sum("preparing" in out for out in outs) == 1
    assert sum("waiting for another process" in out for out in outs) >= 1
    assert_as_undisturbed(cfg, undisturbed)


@pytest.mark.parametrize("limit", [2_000, 6_000])
def test_a_full_disk_is_one_line_and_mended_by_space(
    cfg: DataConfig, undisturbed: PreparedData, limit: int
) -> None:
    status, _, err = finish(*start(cfg, limit=limit))
    folder = str(unfinished(cfg)).removesuffix(".tmp")
    assert (status, err) == (2, f"error: {folder}: {os.strerror(errno.EFBIG)}\n")
    prepare(cfg)
    assert_as_undisturbed(cfg, undisturbed)


def test_a_cache_that_cannot_be_written_is_named(
    cfg: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        said = one_line(partial(prepare, updated(cfg, cache_dir=place)))
        assert said.startswith(f"{tmp_path / 'file'}")

    def refuse(path: Any, *arguments: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    assert one_line(lambda: prepare(cfg)) == f"{cfg.cache_dir}: {os.strerror(errno.EACCES)}"
