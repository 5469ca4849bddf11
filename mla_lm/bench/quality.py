"""Suite `quality`: bits per byte on held-out files after some minutes, against nanoGPT's model.

Both read the embedded corpus in the same tokens and rows, one after the other on the same machine:
the default run with as many steps as fit, and the dense model with AdamW at the learning rate and
batch that were best for it, and the default run's schedule, over the time. Validation and
preparation are not counted.
"""

import csv
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mla_lm.bench import baseline, steps
from mla_lm.bench.report import Row, timed
from mla_lm.config import RunConfig
from mla_lm.config.compose import load_config
from mla_lm.data import EvalLoader, PreparedData, TrainLoader, prepare
from mla_lm.machine import Resolved, autocast, resolve_precision
from mla_lm.objective.metrics import loss_sums, summarize
from mla_lm.objective.schedules import lr_multiplier

LR, BATCH = 2e-3, 8  # of the dense model
PROBED = 12  # steps of ours that are timed
TICKS = 10_000  # of the time, for the schedule
SPEED = "train/tokens_per_second"
TRAIN = Path(__file__).resolve().parent.parent.parent / "train.py"


def run(minutes: float) -> list[Row]:
    """Bits per byte of both, and how many tokens each has seen."""
    cfg = load_config()
    data = prepare(cfg.data)
    n_steps = max(1, round(60 * minutes / step_seconds(cfg)))
    with TemporaryDirectory() as folder:
        own, seconds = trained(Path(folder) / "run", n_steps)
    theirs, dense_tokens = dense(cfg, data, minutes)
    n_tokens = n_steps * cfg.data.batch_size * cfg.data.seq_len
    return [
        Row("default run: minutes of training", seconds / 60, "min"),
        Row("default run: tokens", n_tokens / 1e6, "M"),
        Row("default run: validation", own, "bits/byte", goal="<= 1.40 after 5 minutes"),
        Row("dense model: tokens", dense_tokens / 1e6, "M"),
        Row("dense model: validation", theirs, "bits/byte"),
    ]


def step_seconds(cfg: RunConfig) -> float:
    """Of a run on this machine."""
    side = steps.ours(cfg)
    shape = (cfg.data.batch_size, cfg.data.seq_len + 1)
    tokens = torch.randint(cfg.model.vocab_size, shape)
    number_format = (
        "float32" if resolve_precision(cfg.precision, "cpu") == "32-true" else "bfloat16"
    )
    return sorted(steps.seconds(side, tokens, number_format) for _ in range(PROBED))[PROBED // 2]


def trained(folder: Path, n_steps: int, *more: str) -> tuple[float, float]:
    """`train.py` as a user runs it: bits per byte at its end, and the seconds of its steps."""
    words = [f"run_dir={folder}", f"trainer.max_steps={n_steps}", "callbacks.samples=null", *more]
    words.append(f"trainer.val_every_n_steps={n_steps}")
    subprocess.run([sys.executable, str(TRAIN), *words], check=True)
    with (folder / "metrics" / "version_0" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    speeds = [float(row[SPEED]) for row in rows if row.get(SPEED)]
    (bpb,) = [float(row["val/bpb"]) for row in rows if row.get("val/bpb")]
    cfg = load_config(more)
    per_step = cfg.data.batch_size * cfg.data.seq_len
    return bpb, n_steps * per_step * sum(1 / speed for speed in speeds) / len(speeds)


def dense(cfg: RunConfig, data: PreparedData, minutes: float) -> tuple[float, int]:
    """Bits per byte of the dense model after so many minutes, and the tokens it has seen."""
    torch.manual_seed(cfg.seed)
    seq_len, precision = cfg.data.seq_len, resolve_precision(cfg.precision, "cpu")
    model = baseline.DenseModel(baseline.Shape(data.tokenizer.vocab_size, seq_len))
    optimizer = baseline.optimizer(model, LR)
    loader = TrainLoader(data.train, seq_len=seq_len, batch_size=BATCH, accumulate=1, seed=cfg.seed)
    n_tokens, spent = 0, 0.0
    while spent < 60 * minutes:
        for tokens in loader:
            of_all = round(TICKS * spent / (60 * minutes))
            lr = LR * lr_multiplier(of_all, cfg=cfg.optim, max_steps=TICKS)
            spent += timed(partial(baseline.step, model, optimizer, tokens, lr, precision))
            n_tokens += tokens[:, 1:].numel()
            if spent >= 60 * minutes:
                break
    return validation(model, data, seq_len, precision), n_tokens


@torch.no_grad()
def validation(
    model: torch.nn.Module, data: PreparedData, seq_len: int, precision: Resolved
) -> float:
    """Bits per byte of a model of logits on the whole validation split."""
    byte_lengths = torch.from_numpy(data.tokenizer.byte_lengths)
    batches = EvalLoader(data.val, seq_len=seq_len, batch_size=BATCH)
    with autocast(precision, "cpu"):
        sums = [loss_sums(model(b[:, :-1]), b[:, 1:], byte_lengths) for b in batches]
    return summarize(torch.stack(sums).sum(0), graded=False)["val/bpb"]
