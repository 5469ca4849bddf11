"""Suite `train`: a training step against `transformers`, and between our own models.

43.7M parameters (the model of suite `decode`), batches of 8 x 512 tokens. The peer has our weights
and must first have our loss and gradient in float32; it runs its experts in the way that is faster
at each precision. Every side has a process of its own; rounds are interleaved.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mla_lm.bench import decode, steps
from mla_lm.bench.peer import EXPERTS
from mla_lm.bench.report import Row, Task, ratio, row
from mla_lm.bench.worker import in_processes
from mla_lm.config.compose import load_config
from mla_lm.cost import train_flops_per_token
from mla_lm.machine import Resolved, product_ceiling

ROUNDS = 5
PRECISIONS: tuple[Resolved, ...] = ("bf16-mixed", "32-true")
ROWS, LENGTH = 8, 512
MODEL = (*decode.MODEL, f"data.seq_len={LENGTH}", f"data.batch_size={ROWS}", "optim=adamw")
DENSE = "model/ffn=dense balance=none model.inter_dim=1280"  # as wide as a token's five experts
BETWEEN = (  # overrides of two models
    ("model/ffn=moe", DENSE),
    ("model/attention=mla", "model/attention=mha"),
    ("trainer.activation_checkpointing=non_reentrant", "trainer.activation_checkpointing=none"),
)


def run() -> list[Row]:
    """All figures."""
    with TemporaryDirectory() as name:
        steps.write_equal_peer(load_config(MODEL), Path(name))
        rows = [figure for p in PRECISIONS for figure in against_peer(Path(name), p)]
    return [*rows, *chain.from_iterable(between(*sides) for sides in BETWEEN)]


def against_peer(folder: Path, precision: Resolved) -> Iterator[Row]:
    """Speed and peak memory of both, their ratios, and ours as a share of matmul peak."""
    builds: dict[str, Callable[[], Task]] = {
        "ours": partial(steps.our_step, MODEL, precision),
        "peak": partial(matmul_peak, precision),
    }
    for way in EXPERTS:
        build = partial(steps.peer_step, folder, way, MODEL, precision)
        builds[f"transformers, {way}"] = build
    found, memory = in_processes(builds, rounds=ROUNDS)
    best = min((statistics.median(found[name]), name) for name in builds if "transformers" in name)
    ours, theirs = found["ours"], found[best[1]]
    for name in ("ours", best[1]):
        yield speed(f"{precision}: {name}", found[name], memory[name])
    yield ratio(f"{precision}: ours / transformers", theirs, ours)
    of_memory = memory["ours"] / memory[best[1]]
    yield row(f"{precision}: peak memory, ours / transformers", [of_memory], "x")
    flops = ROWS * LENGTH * train_flops_per_token(load_config(MODEL).model, LENGTH)
    shares = [100 * flops / s / peak for s, peak in zip(ours, found["peak"], strict=True)]
    yield row(f"{precision}: share of matmul peak", shares, "%")


def matmul_peak(precision: Resolved) -> Task:
    """Measures the FLOP/s of large matmuls."""
    return partial(product_ceiling, precision, torch.device("cpu"))


def between(one: str, other: str) -> Iterator[Row]:
    """Speed of two of our own models, each `MODEL` with overrides on top, in bf16-mixed."""
    sides = {name: (*MODEL, *name.split()) for name in (one, other)}
    builds = {name: partial(steps.our_step, own, "bf16-mixed") for name, own in sides.items()}
    found, memory = in_processes(builds, rounds=ROUNDS)
    for name in sides:
        yield speed(name, found[name], memory[name])
    yield ratio(f"{one} / {other}", found[other], found[one])


def speed(name: str, seconds: Sequence[float], peak_mib: float) -> Row:
    """Tokens per second of steps."""
    return row(name, [ROWS * LENGTH / s for s in seconds], "tokens/s", peak_mib=peak_mib)
