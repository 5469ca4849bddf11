"""Suite `scale`: the default run on two processes with one thread each, against one such process.

Each process has the same rows, so that two should take twice the tokens in the same time.
"""

import csv
import os
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from mla_lm.bench.quality import SPEED, TRAIN
from mla_lm.bench.report import Row, interleaved, median_row

ROUNDS, STEPS, LOGGED = 3, 30, 3
ROWS = 8  # of a process
WAYS = {
    "one process": (ROWS, ()),
    "ddp, two processes": (2 * ROWS, ("trainer=ddp", "trainer.devices=2")),
    "fsdp, two processes": (2 * ROWS, ("trainer=fsdp", "trainer.devices=2")),
}


def run(*words: str) -> list[Row]:
    """Tokens a second, and the share of twice those of one process; `words` compose the run."""
    tasks = [partial(tokens_per_second, rows, *more, *words) for rows, more in WAYS.values()]
    speeds = interleaved(tasks, rounds=ROUNDS)
    alone = speeds[0]
    rows = [
        median_row(f"default run: {way}", of_way, "tokens/s")
        for way, of_way in zip(WAYS, speeds, strict=True)
    ]
    for way, of_way in list(zip(WAYS, speeds, strict=True))[1:]:
        shares = [100 * two / (2 * one) for two, one in zip(of_way, alone, strict=True)]
        goal = ">= 85" if way.startswith("ddp") else ""
        rows.append(median_row(f"efficiency: {way}", shares, "%", goal=goal))
    return rows


def tokens_per_second(n_rows: int, *words: str) -> float:
    """Of a short run of `train.py`, its first steps left out."""
    with TemporaryDirectory() as folder:
        own = (
            f"run_dir={folder}/run",
            f"data.batch_size={n_rows}",
            f"trainer.max_steps={STEPS}",
            f"trainer.val_every_n_steps={STEPS}",
            f"trainer.log_every_n_steps={LOGGED}",
            "trainer.limit_val_batches=1",
            "callbacks.samples=null",
        )
        subprocess.run(
            [sys.executable, str(TRAIN), *own, *words],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        path = Path(folder) / "run/metrics/version_0/metrics.csv"
        with path.open(newline="") as file:
            speeds = [float(row[SPEED]) for row in csv.DictReader(file) if row.get(SPEED)]
    return statistics.median(speeds[2:])
