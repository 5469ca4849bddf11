"""Processes that prepare slowly, hang or meet a full disk, and what must be left of them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from mla_lm.config import DataConfig
from mla_lm.data import PreparedData
from mla_lm.data.shards import digest
from tests.data.conftest import AT_ONCE, EVERY, lasting, prepared_folder
from tests.processes import ROOT, environment

PREPARE = f"""
import resource, sys, time, types
package = sys.modules["mla_lm.data"] = types.ModuleType("mla_lm.data")
package.__path__ = ["{ROOT / "mla_lm" / "data"}"]  # without its __init__, which takes torch
from mla_lm.config import JsonlConfig
from mla_lm.data import encoder
from mla_lm.data.prepare import prepare
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import guard

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
guard(lambda: prepare(JsonlConfig.model_validate_json(settings)))
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


def unfinished(cfg: DataConfig) -> Path:
    (only,) = Path(cfg.cache_dir).glob("*.tmp")
    return only


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
