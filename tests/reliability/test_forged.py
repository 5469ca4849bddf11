"""Forged files are refused in one line, by commands that resume and that load; nothing runs."""

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tests.reliability.conftest import Reference
from tests.reliability.forged import FORGERIES, marker
from tests.reliability.record import record
from tests.reliability.runs import STEPS, checkpoint, run, steps

FORBIDDEN = (
    "pickle.find_class",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
)


def watch(log: str) -> None:
    """Write what this process does that reading a checkpoint never needs."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FORBIDDEN and "git" not in str(arguments[:1]):
            with open(log, "a") as file:
                file.write(f"{event} {arguments}\n")

    sys.addaudithook(hook)


def load_too(path: str) -> None:
    """Before the training, what `eval.py` and `generate` do; it must fail."""
    from mla_lm import load_checkpoint
    from mla_lm.errors import UserError

    try:
        load_checkpoint(path)
    except UserError as error:
        print(f"load: {error}")


def test_forged_files_are_refused_and_nothing_runs(reference: Reference, tmp_path: Path) -> None:
    good = checkpoint(reference.folder, 10)

    def trial(name: str) -> str:
        place = tmp_path / str(list(FORGERIES).index(name))
        path = place / "x.ckpt"
        place.mkdir()
        FORGERIES[name](good, path)
        log, events = place / "log", place / "events"
        words = [f"resume={path}", f"run_dir={place / 'run'}"]
        changes = (partial(watch, str(events)), partial(load_too, str(path)))
        ended, said = run(words, log, *changes), log.read_text()
        lines = [line for line in said.splitlines() if line.startswith(("error: ", "load: "))]
        harm = events.read_text() if events.exists() else ""
        ends = ended == 2 and len(lines) == 2 and "Traceback" not in said and not steps(log)
        return "" if ends and not harm and not marker(path).exists() else f"{name}: {harm}{said}"

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(trial, FORGERIES))
    record("forged files refused, nothing executed", found.count(""), len(found))
    assert [wrong for wrong in found if wrong] == []


def test_the_watch_notices_what_a_payload_does(reference: Reference, tmp_path: Path) -> None:
    path, events = tmp_path / "x.ckpt", tmp_path / "events"
    FORGERIES["pickle, protocol 5"](checkpoint(reference.folder, STEPS), path)
    changes = (partial(watch, str(events)), partial(unpickle, path))
    run(["resume=auto"], tmp_path / "log", *changes)
    assert marker(path).exists()
    assert "os.system" in events.read_text()


def unpickle(path: Path) -> None:
    import pickle

    pickle.loads(path.read_bytes())
