"""Suite `checkpoint`: what saving and loading cost, against training and against `torch.save`."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from mla_lm import checkpoint_file
from mla_lm.bench.report import Row, interleaved, median_row, timed
from mla_lm.cli import load_config
from mla_lm.losses import mtp_targets, next_token_loss
from mla_lm.machine import autocast, resolve_precision
from mla_lm.model import Transformer
from mla_lm.optim import build_optimizer

ROUNDS = 7


def run() -> list[Row]:
    """The default model, its optimizer state, and its training step, in interleaved rounds."""
    cfg = load_config()
    model = Transformer(cfg.model)
    optimizer = build_optimizer(model, cfg.optim)
    precision = resolve_precision(cfg.precision, "cpu")
    shape = (cfg.data.batch_size, cfg.data.seq_len + 1)

    def train() -> None:
        tokens = torch.randint(cfg.model.vocab_size, shape)
        with autocast(precision, "cpu"):
            out = model(tokens[:, :-1])
            loss = next_token_loss(out.logits, tokens[:, 1:])
            for depth, hidden in enumerate(out.mtp, start=1):
                loss = loss + next_token_loss(model.lm_head(hidden), mtp_targets(tokens, depth))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    train()
    content: dict[str, Any] = {
        "state_dict": model.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
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
        writes, peer_writes, reads, peer_reads, steps = interleaved(tasks, rounds=ROUNDS)
        size = ours.stat().st_size
    every = cfg.checkpoint.every_n_steps
    shares = [100 * w / (every * s) for w, s in zip(writes, steps, strict=True)]
    ms = {
        "write": writes,
        "write: torch.save, on disk too": peer_writes,
        "verify and read": reads,
        "read: torch.load": peer_reads,
        "training step": steps,
    }
    return [
        Row("size of a checkpoint", size / 1e6, "MB"),
        *(median_row(name, [1e3 * s for s in seconds], "ms") for name, seconds in ms.items()),
        median_row(f"write / training, every {every} steps", shares, "%", goal="< 3"),
    ]
