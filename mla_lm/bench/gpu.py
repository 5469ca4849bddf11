"""Suite `gpu`: a training step of `model=small` on one GPU, bfloat16, 64k tokens.

Ours against `transformers` with `grouped_mm`, both eager and compiled, each in a process of its
own in interleaved rounds; and MFU, the share of the GPU's dense bfloat16 peak. Untested on GPUs.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mla_lm.bench import steps
from mla_lm.bench.report import Row, Task, ratio, row
from mla_lm.bench.worker import in_processes
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
    how: dict[str, Any] = {"precision": "bf16-mixed", "device": device}
    builds: dict[str, Callable[[], Task]] = {}
    with TemporaryDirectory() as name:
        steps.write_equal_peer(cfg, Path(name))
        for way, compiled in WAYS.items():
            own = (*overrides, f"trainer.compile={compiled}")
            builds[f"ours, {way}"] = partial(steps.our_step, own, **how)
            builds[f"transformers, {way}"] = partial(
                steps.peer_step, Path(name), "grouped_mm", overrides, compiled=compiled, **how
            )
        found, memory = in_processes(builds, rounds=ROUNDS, warm_up=WARM_UP)
    rows = [
        row(way, [n_tokens / s for s in seconds], "tokens/s", peak_mib=memory[way])
        for way, seconds in found.items()
    ]
    fast = found["ours, compiled"]
    for way in WAYS:
        other = f"transformers, {way}"
        rows.append(ratio(f"ours, compiled / {other}", found[other], fast))
    flops = n_tokens * train_flops_per_token(cfg.model, cfg.data.seq_len)
    return [*rows, row("MFU, compiled", [100 * flops / s / PEAK for s in fast], "%")]
