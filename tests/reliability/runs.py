"""Tiny runs with experts and an MTP block, and what must be equal when they end."""

import multiprocessing
import os
import random
import re
import shutil
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.checkpoint.find import newest, step_of
from mla_lm.checkpoint.record import RECORD
from tests.processes import ROOT
from tests.reliability import child

os.environ["PYTHONPATH"] = str(ROOT)  # the server that forks looks for its imports here only
CONTEXT = multiprocessing.get_context("forkserver")
LOCK = Lock()  # to start a process asks others for their status, which is read only once
CONTEXT.set_forkserver_preload(["tests.reliability.child"])
SEQ_LEN, WINDOWS, STEPS = 16, 9, 12
OWN = ("run_dir", "run_id")  # what two equal runs in two folders do not share


def write_corpus(place: Path) -> Path:
    """Text that makes `WINDOWS` rows, all different."""
    rng = random.Random(0)
    for name, rows in (("train", WINDOWS), ("val", 3)):
        text = "".join(rng.choices("abcdefghij ", k=rows * SEQ_LEN + 3))
        (place / f"{name}.txt").write_text(text)
    return place


def short(corpus: Path, *more: str) -> tuple[str, ...]:
    """Twelve steps, an epoch is four; a validation every third, a checkpoint every second."""
    return (
        "model=nano",
        "data=text",
        "data/tokenizer=bytes",
        f"data.path={corpus / 'train.txt'}",
        f"data.val_path={corpus / 'val.txt'}",
        f"data.cache_dir={corpus / 'cache'}",
        f"data.seq_len={SEQ_LEN}",
        "data.batch_size=2",
        "precision=32-true",
        "trainer.accelerator=cpu",
        f"trainer.max_steps={STEPS}",
        "trainer.val_every_n_steps=3",
        "trainer.log_every_n_steps=1",
        "checkpoint.every_n_steps=2",
        "callbacks.samples.max_new_tokens=4",
        "+callbacks.draws._target_=tests.reliability.child.Draws",
        *more,
    )


def start(words: Sequence[str], log: Path, *changes: child.Change) -> BaseProcess:
    process = CONTEXT.Process(target=child.train, args=(tuple(words), str(log), changes))
    with LOCK:
        process.start()
    return process


def status(process: BaseProcess) -> int | None:
    """The exit status, negative for the signal that ended it; None while it runs."""
    with LOCK:
        return process.exitcode


def wait(process: BaseProcess) -> int:
    """The exit status at the end."""
    until = time.monotonic() + 600
    while (ended := status(process)) is None:
        assert time.monotonic() < until, "a run does not end"
        time.sleep(0.002)
    return ended


def run(words: Sequence[str], log: Path, *changes: child.Change) -> int:
    return wait(start(words, log, *changes))


def checkpoint(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:06d}.ckpt"


def steps(log: Path) -> list[int]:
    """The optimizer steps that a process says it has done."""
    return [int(n) for n in re.findall(r"^step (\d+)/", log.read_text(), re.MULTILINE)]


def resumption(folder: Path, words: Sequence[str], wanted: dict[str, Any]) -> str:
    """What is wrong with the way a run continues to its end; nothing is an empty text."""
    start = newest(folder)
    if start is None:
        return "no checkpoint to resume"
    step, log = step_of(start), folder.with_suffix(".resumed.log")
    ended = run([*words, f"run_dir={folder}", "resume=auto"], log)
    if ended != 0:
        return f"status {ended}: {log.read_text()}"
    if f"resumed {start} step {step}\n" not in log.read_text():
        return f"did not resume {start}: {log.read_text()}"
    if steps(log) != list(range((step or 0) + 1, STEPS + 1)):
        return f"from {step} did the steps {steps(log)}"
    return " ".join(differences(state(checkpoint(folder, STEPS)), wanted))


def resume_at(
    source: Path, step: int, folder: Path, words: Sequence[str], *changes: child.Change
) -> int:
    """The exit status of a run in `folder` that continues `step` of `source` to the end."""
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(source / "config.json", folder)
    shutil.copy(checkpoint(source, step), checkpoint(folder, step))
    log = folder.with_suffix(".log")
    status = run([*words, f"run_dir={folder}", "resume=auto"], log, *changes)
    assert f"resumed {checkpoint(folder, step)} step {step}\n" in log.read_text()
    return status


def resumed(source: Path, step: int, folder: Path, words: Sequence[str]) -> Path:
    """The folder of a run that continues `step` of `source`, and ends well."""
    assert resume_at(source, step, folder, words) == 0, folder.with_suffix(".log").read_text()
    return folder


def state(path: Path) -> dict[str, Any]:
    """All of a checkpoint but what two equal runs do not share."""
    content = checkpoint_file.read(path)
    config = content[RECORD]["config"]
    content[RECORD]["config"] = {k: v for k, v in config.items() if k not in OWN}
    del content[RECORD]["environment"]["commit"]
    return content


def differences(one: Any, other: Any, key: str = "") -> list[str]:
    """Where two nested states differ in a single bit."""
    if type(one) is not type(other):
        return [key]
    if isinstance(one, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [key]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{key}: {one.keys() ^ other.keys()}"]
        return [d for k in one for d in differences(one[k], other[k], f"{key}.{k}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{key}: {len(one)} and {len(other)}"]
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{key}.{i}")]
    return [] if one == other else [f"{key}: {one} and {other}"]
