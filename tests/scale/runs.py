"""Runs of several processes as a user starts them, and what they leave."""

import csv
import json
import random
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.checkpoint.find import newest
from tests.processes import command, environment

STEPS = 20
DDP, FSDP = ("trainer=ddp", "trainer.devices=2"), ("trainer=fsdp", "trainer.devices=2")
LOSSES = ("train/ce", "train/mtp", "train/loss", "val/loss")
SYNTHETIC = ("data=synthetic", "data.task=recall", "model.vocab_size=320")
TORCHRUN = "torch.distributed.run"


class Ended(NamedTuple):
    status: int
    out: str
    err: str


def write_text(path: Path) -> Path:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 6))) for _ in range(300)]
    path.write_text("\n\n".join(" ".join(rng.choices(words, k=60)) for _ in range(400)))
    return path


def words(place: Path, *more: str) -> tuple[str, ...]:
    """A run of `STEPS` steps of two micro-batches with MTP, in the folder `place / "run"`.

    AdamW: Muon's products in bfloat16 make a rounding of a sum over ranks visible.
    """
    text = ("data=text", f"data.path={place.parent / 'text.txt'}", "data.tokenizer.vocab_size=400")
    return (
        "model=nano",
        "optim=adamw",
        *(() if SYNTHETIC[0] in more else text),
        f"data.cache_dir={place.parent / 'cache'}",
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
        *more,
    )


def start(
    place: Path, *more: str, torchrun: tuple[str, ...] = (), **variables: str
) -> subprocess.Popen[str]:
    """`train.py`, by itself or by torchrun with these options."""
    place.mkdir(exist_ok=True)
    script = command("train.py", *words(place, *more))
    if torchrun:
        script[1:1] = ["-m", TORCHRUN, *torchrun, "--"]
    return subprocess.Popen(
        script,
        cwd=place,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> Ended:
    out, err = process.communicate(timeout=600)
    return Ended(process.returncode, out, err)


def train(place: Path, *more: str) -> Path:
    """A run that ends well."""
    done = ended(start(place, *more))
    assert done.status == 0, done.out + done.err
    return place


def logged(place: Path) -> dict[tuple[str, int], float]:
    """The losses by name and step; of a step done twice the last."""
    found = {}
    for path in sorted((place / "run").glob("metrics/version_*/metrics.csv")):
        with path.open() as file:
            for row in csv.DictReader(file):
                found |= {(n, int(row["step"])): float(row[n]) for n in LOSSES if row.get(n)}
    return found


def noted(place: Path, rank: int, key: str) -> list[Any]:
    """What `Watch` noted of a rank."""
    lines = (place / f"watch/rank-{rank}.jsonl").read_text().splitlines()
    notes = [json.loads(line) for line in lines]
    return [note[key] for note in notes if key in note]


def by_step(place: Path, rank: int, key: str) -> dict[int, list[Any]]:
    """What was noted of each batch; of a step done twice the last."""
    found: dict[int, list[Any]] = {}
    for step, value in zip(noted(place, rank, "step"), noted(place, rank, key), strict=True):
        found[step] = [*found.get(step, []), value][-2:]
    return found


def n_ranks(place: Path) -> int:
    return len(list((place / "watch").glob("rank-*.jsonl")))


def order(place: Path) -> list[str]:
    """Rows in the order of samples: in every micro-batch those of rank 0 first."""
    micro_batches = zip(*(noted(place, r, "rows") for r in range(n_ranks(place))), strict=True)
    return [row for parts in micro_batches for part in parts for row in part]


def weights(place: Path) -> dict[str, Tensor]:
    """Weights and moments at the end."""
    path = newest(place / "run")
    assert path is not None
    assert path.name == f"step-{STEPS:06d}.ckpt"
    content = checkpoint_file.read(path)
    moments = content["optimizer_states"][0]["state"]
    state = {f"{i} {n}": t for i, of_one in moments.items() for n, t in of_one.items()}
    return {**content["state_dict"], **state}


def assert_bit_equal(run: Path, expected: Path) -> None:
    found, wanted = weights(run), weights(expected)
    assert found.keys() == wanted.keys()
    assert [name for name, tensor in wanted.items() if not found[name].equal(tensor)] == []
