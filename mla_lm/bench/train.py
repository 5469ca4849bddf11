"""Suite `train`: a training step against `transformers`, and between our own models.

43.7M parameters (the model of suite `decode`), batches of 8 x 512 tokens. The peer has our weights
and must first have our loss and gradient in float32; it runs its experts in the way that is faster
at each precision. Every side has a process of its own; rounds are interleaved.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mla_lm.bench import decode, steps
from mla_lm.bench.peer import EXPERTS
from mla_lm.bench.report import Row, Task, fastest, interleaved, ratio, row
from mla_lm.bench.worker import Worker
from mla_lm.config.compose import load_config
from mla_lm.cost import count_parameters, train_flops_per_token
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
    with ExitStack() as stack:

        def worker(build: Callable[[], Task]) -> Worker:
            return stack.enter_context(Worker(build))

        ways = {
            way: worker(partial(steps.peer_step, folder, way, MODEL, precision)) for way in EXPERTS
        }
        ours, best = worker(partial(steps.our_step, MODEL, precision)), fastest(ways)
        ours()  # warm-up
        peaks = worker(partial(matmul_peak, precision))
        tasks = {"ours": ours, "transformers": ways[best], "peak": peaks}
        found = interleaved(tasks, rounds=ROUNDS)
        yield speed(f"{precision}: ours", found["ours"], ours)
        yield speed(f"{precision}: transformers, {best}", found["transformers"], ways[best])
        memory = ours.peak() / ways[best].peak()
    yield ratio(f"{precision}: ours / transformers", found["transformers"], found["ours"])
    yield row(f"{precision}: peak memory, ours / transformers", [memory], "x")
    flops = ROWS * LENGTH * train_flops_per_token(load_config(MODEL).model, LENGTH)
    shares = [100 * flops / s / p for s, p in zip(found["ours"], found["peak"], strict=True)]
    yield row(f"{precision}: share of matmul peak", shares, "%")


def matmul_peak(precision: Resolved) -> Task:
    """Measures the FLOP/s of large matmuls."""
    return partial(product_ceiling, precision, torch.device("cpu"))


def between(one: str, other: str) -> Iterator[Row]:
    """Speed of two of our own models, each `MODEL` with overrides on top, in bf16-mixed."""
    sides = {name: (*MODEL, *name.split()) for name in (one, other)}
    with ExitStack() as stack:
        tasks = {
            name: stack.enter_context(Worker(partial(steps.our_step, overrides, "bf16-mixed")))
            for name, overrides in sides.items()
        }
        for task in tasks.values():
            task()  # warm-up
        found = interleaved(tasks, rounds=ROUNDS)
        for name, task in tasks.items():
            active = count_parameters(load_config(sides[name]).model).active / 1e6
            yield speed(f"{name}, {active:.3g}M active", found[name], task)
    yield ratio(f"{one} / {other}", *reversed(found.values()))


def speed(name: str, seconds: Sequence[float], worker: Worker) -> Row:
    """Tokens per second of steps, and the peak memory of their process."""
    speeds = [ROWS * LENGTH / s for s in seconds]
    return row(name, speeds, "tokens/s", peak_mib=worker.peak() / 2**20)
