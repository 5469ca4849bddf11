"""Suites `train` and `gpu`: a training step against `transformers`, and between our own models.

Every side has a process of its own; rounds are interleaved. The peer has our weights and must first
have our loss and gradient in float32. `train`, on a CPU: 43.7M parameters (the model of suite
`decode`), batches of 8 x 512 tokens, the peer's faster way to run experts. `gpu`: `model=small`,
64k tokens in bfloat16, `grouped_mm`, both eager and compiled. Untested on GPUs.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mla_lm.bench import decode, steps
from mla_lm.bench.report import Row, Task, in_processes, ratio, row
from mla_lm.config import RunConfig
from mla_lm.config.compose import load_config
from mla_lm.cost import train_flops_per_token
from mla_lm.errors import UserError
from mla_lm.machine import Resolved, product_ceiling

ROUNDS, WARM_UP = 5, 3
PRECISIONS: tuple[Resolved, ...] = ("bf16-mixed", "32-true")
MODEL = (*decode.MODEL, "data.seq_len=512", "data.batch_size=8", "optim=adamw")
DENSE = "model/ffn=dense balance=none model.inter_dim=1280"  # as wide as a token's five experts
BETWEEN = (  # overrides of two models
    ("model/ffn=moe", DENSE),
    ("model/attention=mla", "model/attention=mha"),
    ("trainer.activation_checkpointing=non_reentrant", "trainer.activation_checkpointing=none"),
)
GPU_MODEL = ("model=small", "data.seq_len=1024", "data.batch_size=64", "optim=adamw")
GPU_PEAK = 989e12  # dense bfloat16 FLOP/s of an H100 or H200


def run() -> list[Row]:
    """All figures of suite `train`."""
    with TemporaryDirectory() as name:
        steps.write_equal_peer(load_config(MODEL), Path(name))
        rows = [figure for p in PRECISIONS for figure in against_peer(Path(name), p)]
    return [*rows, *chain.from_iterable(between(*sides) for sides in BETWEEN)]


def against_peer(folder: Path, precision: Resolved) -> Iterator[Row]:
    """Speed and peak memory of both, their ratios, and ours as a share of matmul peak."""
    peers = {
        f"transformers, {way}": partial(steps.peer_step, folder, way, MODEL, precision)
        for way in steps.EXPERTS
    }
    builds: dict[str, Callable[[], Task]] = {
        "ours": partial(steps.our_step, MODEL, precision),
        "peak": partial(matmul_peak, precision),
        **peers,
    }
    found, memory = in_processes(builds, rounds=ROUNDS)
    best = min(peers, key=lambda name: statistics.median(found[name]))
    ours, theirs = found["ours"], found[best]
    cfg = load_config(MODEL)
    for name in ("ours", best):
        yield speed(f"{precision}: {name}", cfg, found[name], memory[name])
    yield ratio(f"{precision}: ours / transformers", theirs, ours)
    of_memory = memory["ours"] / memory[best]
    yield row(f"{precision}: peak memory, ours / transformers", [of_memory], "x")
    shares = [flops(cfg) / s / peak for s, peak in zip(ours, found["peak"], strict=True)]
    yield row(f"{precision}: share of matmul peak", [100 * share for share in shares], "%")


def matmul_peak(precision: Resolved) -> Task:
    """Measures the FLOP/s of large matmuls."""
    return partial(product_ceiling, precision, torch.device("cpu"))


def between(one: str, other: str) -> Iterator[Row]:
    """Speed of two of our own models, each `MODEL` with overrides on top, in bf16-mixed."""
    sides = {name: (*MODEL, *name.split()) for name in (one, other)}
    builds = {name: partial(steps.our_step, own, "bf16-mixed") for name, own in sides.items()}
    found, memory = in_processes(builds, rounds=ROUNDS)
    for name in sides:
        yield speed(name, load_config(MODEL), found[name], memory[name])
    yield ratio(f"{one} / {other}", found[other], found[one])


def run_gpu(overrides: tuple[str, ...] = GPU_MODEL, device: str = "cuda") -> list[Row]:
    """All figures of suite `gpu`; `overrides` compose the model and the batch."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("suite=gpu: torch finds no CUDA GPU")
    cfg = load_config(overrides)
    how: dict[str, Any] = {"precision": "bf16-mixed", "device": device}
    builds: dict[str, Callable[[], Task]] = {}
    with TemporaryDirectory() as name:
        steps.write_equal_peer(cfg, Path(name))
        of_peer = partial(steps.peer_step, Path(name), "grouped_mm", overrides, **how)
        for way, compiled in {"eager": False, "compiled": True}.items():
            own = (*overrides, f"trainer.compile={compiled}")
            builds[f"ours, {way}"] = partial(steps.our_step, own, **how)
            builds[f"transformers, {way}"] = partial(of_peer, compiled=compiled)
        found, memory = in_processes(builds, rounds=ROUNDS, warm_up=WARM_UP)
    fast = found["ours, compiled"]
    return [
        *(speed(name, cfg, seconds, memory[name]) for name, seconds in found.items()),
        *(ratio(f"ours, compiled / {n}", s, fast) for n, s in found.items() if "transf" in n),
        row("MFU, compiled", [100 * flops(cfg) / s / GPU_PEAK for s in fast], "%"),
    ]


def flops(cfg: RunConfig) -> float:
    """Of a step."""
    seq_len = cfg.data.seq_len
    return cfg.data.batch_size * seq_len * train_flops_per_token(cfg.model, seq_len)


def speed(name: str, cfg: RunConfig, seconds: Sequence[float], peak_mib: float) -> Row:
    """Tokens per second of steps."""
    n_tokens = cfg.data.batch_size * cfg.data.seq_len
    return row(name, [n_tokens / s for s in seconds], "tokens/s", peak_mib=peak_mib)
