"""Preparations that are killed, meet a full disk or run into each other: what must be left."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from mla_lm.config import DataConfig
from mla_lm.data import PreparedData, preparation, prepare
from mla_lm.files import digest
from tests.conftest import one_line
from tests.data.conftest import (
    SPLITS,
    corpus_config,
    lasting,
    prepared_folder,
    some_text,
    tokenizer_keys,
    updated,
    write_rows,
)
from tests.processes import ROOT, environment

BLOCK, BATCH = 15, 4  # pieces: some 12 shards of each split
PREPARE = f"""
import resource, sys, time
from mla_lm.config import JsonlConfig
from mla_lm.data import preparation, prepare
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import guard

settings, seconds, limit = sys.argv[1], *map(float, sys.argv[2:])
preparation.BLOCK, preparation.BATCH = {BLOCK}, {BATCH}
encode_batch = Tokenizer.encode_batch

def slowly(self, texts):
    time.sleep(seconds)
    return encode_batch(self, texts)

Tokenizer.encode_batch = slowly
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
guard(lambda: prepare(JsonlConfig.model_validate_json(settings)))
"""
Process = subprocess.Popen[str]


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


@pytest.fixture(autouse=True, scope="module")
def _small_blocks() -> Any:
    with mock.patch.multiple(preparation, BLOCK=BLOCK, BATCH=BATCH):
        yield


@pytest.fixture
def cfg(rows: Path, tmp_path: Path) -> DataConfig:
    return config_of(rows, tmp_path / "cache")


@pytest.fixture(scope="module")
def undisturbed(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """What preparing the rows gives where nothing goes wrong."""
    return prepare(config_of(rows, tmp_path_factory.mktemp("undisturbed")))


def interrupt(cfg: DataConfig, place: Any, name: str, *, at: int) -> None:
    """Prepare until `place.name` is called for the `at`-th time."""
    effects = [mock.DEFAULT] * (at - 1) + [Killed]
    interrupted = mock.patch.object(place, name, wraps=getattr(place, name), side_effect=effects)
    with interrupted, pytest.raises(Killed):
        prepare(cfg)


def unfinished(cfg: DataConfig) -> Path:
    (only,) = (p for p in Path(cfg.cache_dir).glob(".unfinished-*/*") if p.is_dir())
    return only


def shards_in(folder: Path) -> list[dict[str, Any]]:
    manifest = json.loads((folder / "manifest.json").read_text())
    return [shard for split in SPLITS for shard in manifest[split]["shards"]]


@pytest.fixture
def half_done(cfg: DataConfig) -> Path:
    """The folder of a preparation killed behind three blocks."""
    interrupt(cfg, preparation, "write_manifest", at=5)
    return unfinished(cfg)


def assert_as_undisturbed(cfg: DataConfig, undisturbed: PreparedData) -> None:
    """Every file is right, and nothing else lies there."""
    cache, folder = Path(cfg.cache_dir), prepared_folder(cfg)
    assert [p.name for p in cache.glob("[!.]*")] == [folder.name]
    assert [p.name for p in cache.glob(".*/*")] in ([], [f"{folder.name}.lock"])
    data, shards = prepare(cfg), shards_in(folder)
    assert lasting(data.manifest) == lasting(undisturbed.manifest)
    assert len(shards) > 15
    files = {p.name for p in folder.iterdir()} - {"manifest.json", "tokenizer.json", ".mla_lm"}
    assert files == {shard["path"] for shard in shards}
    assert all(digest(folder / shard["path"]) == shard["sha256"] for shard in shards)


@pytest.mark.parametrize(
    ("place", "name", "at", "blocks"),
    [
        (preparation, "choose_split", 1, None),
        (preparation, "write_manifest", 1, None),
        (preparation, "_ids", 1, 0),
        (preparation, "_ids", 16, 7),
        (preparation, "digest", 4, 1),
        (preparation, "write_manifest", 6, 4),
        (os, "fsync", 20, 2),
        (os, "replace", 3, 0),
        (os, "rename", 1, 12),
    ],
)
def test_wherever_it_is_interrupted_finished_shards_stay(
    cfg: DataConfig,
    undisturbed: PreparedData,
    place: Any,
    name: str,
    at: int,
    blocks: int | None,
) -> None:
    """`blocks` are finished by then; None: not even the tokenizer is."""
    interrupt(cfg, place, name, at=at)
    assert not [*Path(cfg.cache_dir).glob("[!.]*")]
    counted = [] if blocks is None else shards_in(unfinished(cfg))
    assert sum(shard["path"].startswith("train") for shard in counted) == (blocks or 0)
    times = [(unfinished(cfg) / shard["path"]).stat().st_mtime_ns for shard in counted]
    prepare(cfg)
    folder = prepared_folder(cfg)
    assert [(folder / shard["path"]).stat().st_mtime_ns for shard in counted] == times
    assert_as_undisturbed(cfg, undisturbed)


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "train-00001.bin"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 40)])
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


def start(cfg: DataConfig, *, seconds: float = 0.0, limit: int = -1) -> Process:
    """A process that prepares, each batch `seconds` slower, files up to `limit` bytes."""
    words = [sys.executable, "-c", PREPARE, cfg.model_dump_json(), str(seconds), str(limit)]
    options: dict[str, Any] = {"cwd": ROOT, "env": environment(), "encoding": "utf-8"}
    return Process(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def read_line(process: Process) -> str:
    assert process.stdout
    return process.stdout.readline()


def finish(process: Process) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def test_killed_again_and_again_it_gets_there(cfg: DataConfig, undisturbed: PreparedData) -> None:
    """`kill -9` behind two more blocks each time; two processes wait for the last one."""
    firsts, waiting = [], list[Process]()
    for _ in range(3):
        process = start(cfg, seconds=0.1)
        firsts.append(read_line(process))
        for _ in range(2):
            assert read_line(process).startswith("tokenizing")
        if len(firsts) == 3:
            process.send_signal(signal.SIGSTOP)  # however long the others take to start
            waiting = [start(cfg) for _ in range(2)]
            for other in waiting:
                assert read_line(other).startswith("waiting for another process")
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL
    behind = [int(line.split()[-1]) for line in firsts if "resuming after piece" in line]
    assert len(behind) == 2
    assert 0 < behind[0] < behind[1]
    ended = [finish(other) for other in waiting]
    assert [(status, err) for status, _, err in ended] == [(0, "")] * 2
    assert sum("resuming after piece" in out for _, out, _ in ended) == 1
    assert_as_undisturbed(cfg, undisturbed)
    prepare(updated(cfg, verify="full"))


@pytest.mark.parametrize("limit", [1_000, 5_000])
def test_a_full_disk_is_one_line_and_mended_by_space(
    cfg: DataConfig, undisturbed: PreparedData, limit: int
) -> None:
    status, _, err = finish(start(cfg, limit=limit))
    assert (status, len(err.splitlines())) == (2, 1)
    assert err.startswith(f"error: {unfinished(cfg)}/")
    assert err.endswith(f": {os.strerror(errno.EFBIG)}\n")
    prepare(cfg)
    assert_as_undisturbed(cfg, undisturbed)


def test_a_cache_that_cannot_be_written_is_named(cfg: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        said = one_line(lambda: prepare(updated(cfg, cache_dir=place)))  # noqa: B023
        assert said.startswith(f"{tmp_path / 'file'}")


def test_nothing_is_written_or_read_where_another_user_has_placed_it(
    cfg: DataConfig,
    half_done: Path,
    undisturbed: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, another = half_done.parent, os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: another)
    theirs = place.rename(place.with_name(f".unfinished-{os.getuid()}"))
    before = {p: p.stat().st_mtime_ns for p in theirs.rglob("*")}
    assert one_line(lambda: prepare(cfg)).startswith(f"{theirs}: a link, or of another user")
    theirs.rename(tmp_path / "elsewhere")
    theirs.symlink_to(tmp_path / "elsewhere")
    assert one_line(lambda: prepare(cfg)).startswith(f"{theirs}: a link, or of another user")
    assert {p: p.stat().st_mtime_ns for p in theirs.rglob("*")} == before
    monkeypatch.undo()
    with mock.patch.multiple(preparation, BLOCK=BLOCK, BATCH=BATCH):
        prepare(cfg)
    assert lasting(prepare(cfg).manifest) == lasting(undisturbed.manifest)


def test_two_users_may_prepare_the_same_corpus(
    cfg: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second to finish takes what the first has put into the cache."""

    def overtaken(unfinished: Path, folder: Path) -> None:
        shutil.copytree(unfinished, folder)
        publish(unfinished, folder)
        assert not unfinished.exists()

    publish = preparation._publish
    monkeypatch.setattr(preparation, "_publish", overtaken)
    prepare(cfg)
