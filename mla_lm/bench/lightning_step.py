"""What Lightning adds to a training step: the real module and trainer against a bare loop."""

import statistics
import time
import warnings
from itertools import pairwise
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from mla_lm.bench import steps
from mla_lm.bench.report import Row, interleaved, median_row
from mla_lm.checkpoint.record import Record
from mla_lm.config import RunConfig
from mla_lm.config.compose import load_config
from mla_lm.data import Tokenizer
from mla_lm.machine import Resolved, resolve_precision
from mla_lm.training.module import LanguageModel

ROUNDS, STEPS = 5, 12


class Times(L.Callback):
    """When each step began."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.times.append(time.perf_counter())

    def median_step(self) -> float:
        """Seconds from one beginning to the next."""
        return statistics.median(b - a for a, b in pairwise(self.times))


def overhead() -> list[Row]:
    """The default run: a step under Lightning against one of the bare loop."""
    cfg = load_config()
    precision = resolve_precision(cfg.precision, "cpu")
    torch.manual_seed(1)
    shape = (cfg.data.batch_size, cfg.data.seq_len + 1)
    batches = [torch.randint(cfg.model.vocab_size, shape) for _ in range(STEPS)]
    side = steps.ours(cfg)
    number_format = "bfloat16" if precision == "bf16-mixed" else "float32"
    tasks = [
        lambda: statistics.median(steps.seconds(side, b, number_format) for b in batches),
        lambda: under_lightning(cfg, precision, batches),
    ]
    bare, lightning = interleaved(tasks, rounds=ROUNDS)
    ratios = [a / b for a, b in zip(lightning, bare, strict=True)]
    return [
        median_row(f"default run, {number_format}: a step, bare", [1e3 * s for s in bare], "ms"),
        median_row("default run: Lightning / bare", ratios, "x", goal="<= 1.05"),
    ]


def under_lightning(cfg: RunConfig, precision: Resolved, batches: list[Tensor]) -> float:
    """Seconds of a step of the real module, logging included."""
    tokenizer = Tokenizer.train((), vocab_size=257, end_of_text="<|endoftext|>")
    record = Record.of(cfg, command="", tokenizer=tokenizer.json, data={}, environment={})
    times = Times()
    with TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        trainer = L.Trainer(
            accelerator="cpu",
            precision=precision,
            max_steps=len(batches),
            gradient_clip_val=cfg.trainer.gradient_clip_val,
            log_every_n_steps=cfg.trainer.log_every_n_steps,
            logger=CSVLogger(folder),
            callbacks=[times],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        loader: DataLoader[Tensor] = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
        trainer.fit(LanguageModel(cfg, tokenizer, record), loader)
    return times.median_step()
