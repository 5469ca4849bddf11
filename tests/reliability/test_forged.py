"""Files made to do harm are refused in one line, by resuming and by loading; nothing in them runs.

Each holds a payload that would leave a marker file.
"""

import hashlib
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.checkpoint.record import RECORD
from mla_lm.training.restore import BATCHES
from tests.reliability.conftest import Reference
from tests.reliability.record import record
from tests.reliability.runs import STEPS, checkpoint, run, steps

Forgery = Callable[[Path, Path], object]  # (a good checkpoint, where to write)
FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")


def marker(path: Path) -> Path:
    return path.with_name("marker")


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {marker(self.path)}",)


def pickle_behind(good: Path, path: Path) -> None:
    path.write_bytes(good.read_bytes() + pickle.dumps(Payload(path)))


def edited(edit: Callable[[dict[str, Any], Path], object]) -> Forgery:
    """The content changed, with a good digest."""

    def forge(good: Path, path: Path) -> None:
        content = checkpoint_file.read(good)
        edit(content, path)
        checkpoint_file.write(path, content)

    return forge


def config(key: str, value: object) -> Forgery:
    """Another value in the stored configuration; TOUCH stands for a command."""

    def edit(content: dict[str, Any], path: Path) -> None:
        text = json.dumps(value).replace("TOUCH", f"touch {marker(path)}")
        content[RECORD]["config"][key] = json.loads(text)

    return edited(edit)


def pickled_tokenizer(content: dict[str, Any], path: Path) -> None:
    payload = np.frombuffer(pickle.dumps(Payload(path)), dtype=np.uint8).copy()
    content[RECORD]["tokenizer"] = torch.from_numpy(payload)


def tensor(name: str, shape: int) -> Forgery:
    return edited(lambda content, path: content["state_dict"].update({name: torch.zeros(shape)}))


def signed(content: bytes) -> bytes:
    at, zeros = checkpoint_file.DIGEST_AT, checkpoint_file.UNKNOWN.encode()
    digest = hashlib.sha256(content[:at] + zeros + content[at + 64 :]).hexdigest()
    return content[:at] + digest.encode() + content[at + 64 :]


def headed(edit: Callable[[bytes], bytes]) -> Forgery:
    """The header changed, with a good digest."""

    def forge(good: Path, path: Path) -> None:
        content = good.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        header = edit(content[8:end])
        path.write_bytes(signed(len(header).to_bytes(8, "little") + header + content[end:]))

    return forge


def nested(header: bytes) -> bytes:
    deep = b'content\\":{\\"x\\":' + b"[" * 100_000 + b"]" * 100_000 + b","
    return header.replace(b'content\\":{', deep, 1)


def moved(by: int) -> Forgery:
    """The first tensor is said to lie somewhere else, among the others or behind them."""

    def edit(header: bytes) -> bytes:
        entries = json.loads(header)
        first = next(entry for name, entry in entries.items() if name != "__metadata__")
        first["data_offsets"] = [at + by for at in first["data_offsets"]]
        return json.dumps(entries, separators=(",", ":")).encode()

    return headed(edit)


def huge_header(good: Path, path: Path) -> None:
    path.write_bytes(signed((2**62).to_bytes(8, "little") + good.read_bytes()[8:]))


def numpy_objects(good: Path, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([Payload(path)], dtype=object))


def zipped(good: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(path)))


CALL = {"_target_": "os.system", "command": "TOUCH"}
FORGERIES: dict[str, Forgery] = {
    "pickle": lambda good, path: path.write_bytes(pickle.dumps(Payload(path))),
    "torch.save": lambda good, path: torch.save({"state_dict": Payload(path)}, path),
    "zip of a pickle": zipped,
    "numpy objects": numpy_objects,
    "pickle behind the tensors": pickle_behind,
    "pickle for a tokenizer": edited(pickled_tokenizer),
    "_target_ for the model": config("model", CALL),
    "callbacks": config("callbacks", {"x": CALL}),
    "loggers": config("logger", {"wandb": CALL}),
    "another key": config("_class_path", "os.system"),
    "YAML tag for a number": config("seed", "!!python/object/apply:os.system ['TOUCH']"),
    "path for a run_id": config("run_id", "../../marker"),
    "tensor named by a path": tensor("../../../etc/passwd", 3),
    "tensor of another shape": tensor("model.norm.weight", 10**6),
    "metadata nested deeply": headed(nested),
    "overlapping offsets": moved(4),
    "offsets beyond the end": moved(2**40),
    "huge header": huge_header,
}


def watch(log: str) -> None:
    """Write down what reading a checkpoint never needs."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FORBIDDEN and "git" not in str(arguments[:1]):
            with open(log, "a") as file:
                file.write(f"{event} {arguments}\n")

    sys.addaudithook(hook)


def load_too(path: str) -> None:
    """Before the training, what `eval.py` and `generate` do; it must fail."""
    from mla_lm import load_checkpoint
    from mla_lm.errors import UserError

    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    print(f"load: {caught.value}")


def unpickle(path: Path) -> None:
    pickle.loads(path.read_bytes())


def test_forged_files_are_refused_and_nothing_runs(reference: Reference, tmp_path: Path) -> None:
    good, wrong = checkpoint(reference.folder, 10), {}
    for number, (name, forge) in enumerate(FORGERIES.items()):
        place = tmp_path / str(number)
        place.mkdir()
        path, log, events = place / "x.ckpt", place / "log", place / "events"
        forge(good, path)
        words = [f"resume={path}", f"run_dir={place / 'run'}"]
        ended = run(words, log, partial(watch, str(events)), partial(load_too, str(path)))
        said = log.read_text()
        lines = [line for line in said.splitlines() if line.startswith(("error: ", "load: "))]
        refused = ended == 2 and len(lines) == 2 and "Traceback" not in said and not steps(log)
        if not refused or events.exists() or marker(path).exists():
            wrong[name] = said
    n = len(FORGERIES)
    record("forged files refused, nothing executed", n - len(wrong), n)
    assert wrong == {}


def set_at(*keys: Any, value: Any) -> Forgery:
    """Another value, or none, at a place of the content."""
    *above, last = keys
    return edited(lambda content, path: reduce(getitem, above, content).update({last: value}))


LOOP = ("loops", "fit_loop")
MOMENTS = ("optimizer_states", 0, "state", 0)
STATES: dict[str, Forgery] = {
    "no optimizer": set_at("optimizer_states", value=[]),
    "no moments": set_at("optimizer_states", 0, "state", value={}),
    "moments of another shape": set_at(*MOMENTS, "exp_avg", value=torch.zeros(3)),
    "negative squares": set_at(*MOMENTS, "exp_avg_sq", value=torch.tensor(-1.0)),
    "schedulers": set_at("lr_schedulers", value=[{}]),
    "another step": set_at("global_step", value=2**70),
    "sample": set_at(*LOOP, "state_dict", "combined_loader", value=[{"sample": -1}]),
    "no loops": set_at("loops", value=[]),
    "more batches": set_at(*LOOP, BATCHES, "total", "ready", value=99),
    "no generators": set_at("callbacks", "ExactResume", value={"ranks": []}),
    "nothing of them": set_at("callbacks", "ExactResume", value={}),
    "best step": set_at("callbacks", "Checkpoints", value={"best_step": "x", "best_loss": 1.0}),
    "idle experts": set_at("callbacks", "ExpertLoad", "idle", value=torch.zeros(3)),
    "version of Lightning": set_at("pytorch-lightning_version", value="x"),
}


@pytest.mark.parametrize("name", STATES)
def test_a_forged_state_is_refused_before_anything_is_written(
    reference: Reference, tmp_path: Path, name: str
) -> None:
    STATES[name](checkpoint(reference.folder, 10), tmp_path / "x.ckpt")
    words = (f"resume={tmp_path / 'x.ckpt'}", f"run_dir={tmp_path / 'run'}", "logger=csv")
    status, said = run(words, tmp_path / "log"), (tmp_path / "log").read_text()
    assert (status, said.count("error: ")) == (2, 1), said
    assert not (tmp_path / "run").exists()


def test_the_watch_notices_what_a_payload_does(reference: Reference, tmp_path: Path) -> None:
    path, events = tmp_path / "x.ckpt", tmp_path / "events"
    FORGERIES["pickle"](checkpoint(reference.folder, STEPS), path)
    run(["resume=auto"], tmp_path / "log", partial(watch, str(events)), partial(unpickle, path))
    assert marker(path).exists()
    assert "os.system" in events.read_text()
