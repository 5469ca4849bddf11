"""Suite `gpu`: a training step of `model=small` on one GPU, bfloat16, 64k tokens.

Ours against `transformers` with `grouped_mm`, both eager and compiled, each in a process of its
own in interleaved rounds; and MFU, the share of the GPU's dense bfloat16 peak. Untested on GPUs.
"""

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mla_lm.bench import steps
from mla_lm.bench.report import Row, interleaved, ratio, row
from mla_lm.bench.worker import Worker
from mla_lm.config.compose import load_config
from mla_lm.cost import train_flops_per_token
from mla_lm.errors import UserError

ROUNDS, WARM_UP = 5, 3
WAYS = {"eager": False, "compiled": True}
PEAK = 989e12  # dense bfloat16 FLOP/s of an H100 or H200
MODEL = ("model=small", "data.seq_len=1024", "data.batch_size=64", "optim=adamw")


def run(overrides: tuple[str, ...] = MODEL, device: str = "cuda") -> list[Row]:
    """All figures; `overrides` compose the model and the batch."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("suite=gpu: torch finds no CUDA GPU")
    cfg = load_config(overrides)
    n_tokens = cfg.data.batch_size * cfg.data.seq_len
    with TemporaryDirectory() as name, ExitStack() as stack:
        steps.write_equal_peer(cfg, Path(name))
        how: dict[str, Any] = {"precision": "bf16-mixed", "device": device}
        tasks: dict[str, Worker] = {}
        for way, compiled in WAYS.items():
            own = (*overrides, f"trainer.compile={compiled}")
            ours = partial(steps.our_step, own, **how)
            arguments = (Path(name), "grouped_mm", overrides)
            theirs = partial(steps.peer_step, *arguments, compiled=compiled, **how)
            for side, build in (("ours", ours), ("transformers", theirs)):
                tasks[f"{side}, {way}"] = stack.enter_context(Worker(build))
        for task in tasks.values():
            for _ in range(WARM_UP):
                task()
        found = interleaved(tasks, rounds=ROUNDS)
        peaks = {way: task.peak() / 2**20 for way, task in tasks.items()}
    rows = [
        row(way, [n_tokens / s for s in seconds], "tokens/s", peak_mib=peaks[way])
        for way, seconds in found.items()
    ]
    fast = found["ours, compiled"]
    for way in WAYS:
        other = f"transformers, {way}"
        rows.append(ratio(f"ours, compiled / {other}", found[other], fast))
    flops = n_tokens * train_flops_per_token(cfg.model, cfg.data.seq_len)
    return [*rows, row("MFU, compiled", [100 * flops / s / PEAK for s in fast], "%")]
