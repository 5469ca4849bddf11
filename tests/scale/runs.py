"""Runs of several processes as a user starts them, and what they leave."""

import csv
import json
import random
import socket
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.checkpoint.record import newest
from tests.processes import command, environment

STEPS = 20
DDP, FSDP = ("trainer=ddp", "trainer.devices=2"), ("trainer=fsdp", "trainer.devices=2")
FAR = ("train/ce", "train/mtp", "train/loss", "val/loss")


class Ended(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The only line of errors."""
        (line,) = self.err.splitlines()
        return line


def write_text(path: Path) -> Path:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 6))) for _ in range(300)]
    path.write_text("\n\n".join(" ".join(rng.choices(words, k=60)) for _ in range(400)))
    return path


def words(place: Path) -> tuple[str, ...]:
    """A run of `STEPS` steps of two micro-batches with MTP, in the folder `place / "run"`.

    AdamW: Muon's products in bfloat16 make a rounding of a sum over ranks visible.
    """
    return (
        "model=nano",
        "optim=adamw",
        "data=text",
        f"data.path={place.parent / 'text.txt'}",
        f"data.cache_dir={place.parent / 'cache'}",
        "data.tokenizer.vocab_size=400",
        "data.seq_len=32",
        "data.batch_size=4",
        "model.mtp_depth=1",
        "precision=32-true",
        "trainer.accelerator=cpu",
        "trainer.accumulate_grad_batches=2",
        f"trainer.max_steps={STEPS}",
        "trainer.val_every_n_steps=10",
        "trainer.log_every_n_steps=1",
        "callbacks.samples.max_new_tokens=4",
        "+callbacks.watch._target_=tests.scale.watch.Watch",
        f"+callbacks.watch.folder={place / 'watch'}",
        f"run_dir={place / 'run'}",
    )


def start(place: Path, *more: str, **extra: str) -> subprocess.Popen[str]:
    """`train.py` behind this Python, or what `more` begins with behind `-m`."""
    place.mkdir(exist_ok=True)
    module = more[: more.index("--") + 1] if "--" in more else ()
    own = more[len(module) :]
    if "data=synthetic" in own:
        of_text = ("data=", "data.path", "data.tokenizer")
        own = (*(word for word in words(place) if not word.startswith(of_text)), *own)
    else:
        own = (*words(place), *own)
    script = command("train.py", *own)
    script[1:1] = ["-m", *module[:-1]] if module else []
    return subprocess.Popen(
        script,
        cwd=place,
        env=environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> Ended:
    out, err = process.communicate(timeout=100)
    return Ended(process.returncode, out, err)


def train(place: Path, *more: str) -> Path:
    """A run that ends well."""
    done = ended(start(place, *more))
    assert done.status == 0, done.out + done.err
    return place


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def by_hand(rank: int, port: int) -> dict[str, str]:
    """What torchrun would tell one of two processes."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def logged(place: Path) -> dict[tuple[str, int], float]:
    """The losses by name and step; of a step done twice the last."""
    found = {}
    for path in sorted((place / "run").glob("metrics/version_*/metrics.csv")):
        with path.open() as file:
            for row in csv.DictReader(file):
                found |= {(n, int(row["step"])): float(row[n]) for n in FAR if row.get(n)}
    return found


def seen(place: Path, rank: int) -> list[dict[str, Any]]:
    """What `Watch` noted of a rank."""
    notes = (place / f"watch/rank-{rank}.jsonl").read_text()
    return [json.loads(line) for line in notes.splitlines()]


def of(place: Path, rank: int, key: str) -> list[Any]:
    return [note[key] for note in seen(place, rank) if key in note]


def order(place: Path) -> list[str]:
    """Rows in the order of samples: in every micro-batch those of rank 0 first."""
    ranks = range(len(list((place / "watch").glob("rank-*.jsonl"))))
    micro_batches = zip(*(of(place, rank, "rows") for rank in ranks), strict=True)
    return [row for parts in micro_batches for part in parts for row in part]


def weights(place: Path) -> dict[str, Tensor]:
    path = newest(place / "run")
    assert path is not None
    assert path.name == f"step-{STEPS:06d}.ckpt"
    content = checkpoint_file.read(path)
    moments = content["optimizer_states"][0]["state"]
    state = {f"{i} {n}": t for i, of_one in moments.items() for n, t in of_one.items()}
    return {**content["state_dict"], **state}
