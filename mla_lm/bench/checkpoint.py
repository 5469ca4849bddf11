"""Suite `checkpoint`: what saving and loading cost, against training and against `torch.save`."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from mla_lm.bench import steps
from mla_lm.bench.report import Row, interleaved, median_row, timed
from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.config.compose import load_config
from mla_lm.machine import autocast, resolve_precision

ROUNDS = 7


def run() -> list[Row]:
    """The default model, its optimizer state, and its training step, in interleaved rounds."""
    cfg = load_config()
    precision = resolve_precision(cfg.precision, "cpu")
    side = steps.ours(cfg)

    def train() -> None:
        tokens = torch.randint(cfg.model.vocab_size, (cfg.data.batch_size, cfg.data.seq_len + 1))
        side.step(tokens, autocast(precision, "cpu"))

    train()
    content: dict[str, Any] = {
        "state_dict": side.model.state_dict(),
        "optimizer_states": [side.optimizer.state_dict()],
    }
    with tempfile.TemporaryDirectory() as name:
        ours, theirs = Path(name) / "ours.ckpt", Path(name) / "theirs.pt"

        def torch_save() -> None:
            torch.save(content, theirs)
            with theirs.open("rb") as file:
                os.fsync(file.fileno())

        actions = [
            lambda: checkpoint_file.write(ours, content),
            torch_save,
            lambda: checkpoint_file.read(ours),
            lambda: torch.load(theirs, weights_only=True),
            train,
        ]
        tasks = [lambda action=action: timed(action) for action in actions]
        writes, peer_writes, reads, peer_reads, trained = interleaved(tasks, rounds=ROUNDS)
        size = ours.stat().st_size
    every = cfg.checkpoint.every_n_steps
    shares = [100 * w / (every * s) for w, s in zip(writes, trained, strict=True)]
    ms = {
        "write": writes,
        "write: torch.save, on disk too": peer_writes,
        "verify and read": reads,
        "read: torch.load": peer_reads,
        "training step": trained,
    }
    return [
        Row("size of a checkpoint", size / 1e6, "MB"),
        *(median_row(name, [1e3 * s for s in seconds], "ms") for name, seconds in ms.items()),
        median_row(f"write / training, every {every} steps", shares, "%", goal="< 3"),
    ]
