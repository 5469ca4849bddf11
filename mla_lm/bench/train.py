"""Suite `train`: a training step against `transformers`, between our own models, and the machine.

43.7M parameters (the model of suite `decode`), batches of 8 x 512 tokens. Both sides have the same
weights, and must first have the same loss and gradient in float32. In each number format the peer
runs its experts in the way that is faster there. Every side has a process of its own, and they take
turns.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from mla_lm.accounting import count_parameters, train_flops_per_token
from mla_lm.bench import decode, steps
from mla_lm.bench.lightning_step import overhead
from mla_lm.bench.peer import Peer, write_peer
from mla_lm.bench.report import Row, fastest, interleaved, median_row, ratio_row, timed
from mla_lm.bench.worker import Worker
from mla_lm.cli import load_config
from mla_lm.config import RunConfig
from mla_lm.model import Transformer

BATCH, LENGTH = 8, 512
ROUNDS = 5
GOALS = {"bfloat16": 2.5, "float32": 1.4}
SIDE = 4096  # of the square matrices of the ceiling
MODEL = (*decode.MODEL, f"data.seq_len={LENGTH}", f"data.batch_size={BATCH}", "optim=adamw")


def run() -> list[Row]:
    """All figures."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        require_equal(folder)
        rows = [row for number_format in GOALS for row in against_peer(folder, number_format)]
    rows += between("moe / dense of equal active parameters", (), dense_words(), goal=0.6)
    rows += between("mla / mha", (), ("model/attention=mha",), goal=0.9)
    return [*rows, *overhead()]


def config(*words: str) -> RunConfig:
    """The model of the suite, changed by overrides."""
    return load_config([*MODEL, *words])


def batch(cfg: RunConfig) -> Tensor:
    """Random tokens (B, T + 1), the same every time."""
    torch.manual_seed(1)
    return torch.randint(cfg.model.vocab_size, (cfg.data.batch_size, cfg.data.seq_len + 1))


def dense_words() -> Sequence[str]:
    """The same model with SwiGLUs as wide as the experts a token meets."""
    moe = config().model.ffn
    assert moe.kind == "moe"
    width = (moe.n_activated_experts + moe.n_shared_experts) * moe.moe_inter_dim
    return ("model/ffn=dense", "balance=none", f"model.inter_dim={width}")


def require_equal(folder: Path) -> None:
    """Write the peer's weights, which are ours; AssertionError when its step is another."""
    mine = steps.ours(config())
    assert isinstance(mine.model, Transformer)
    write_peer(mine.model, folder)
    steps.assert_equal(mine, steps.peer(folder, Peer.EXPERTS[0]), batch(config())[:2])


def our_step(words: Sequence[str], number_format: str) -> Callable[[], float]:
    """Seconds of a step of ours, by calling."""
    cfg = config(*words)
    return partial(steps.seconds, steps.ours(cfg), batch(cfg), number_format)


def peer_step(folder: Path, experts: str, number_format: str) -> Callable[[], float]:
    """Seconds of a step of the peer's, by calling."""
    return partial(steps.seconds, steps.peer(folder, experts), batch(config()), number_format)


def ceiling(number_format: str) -> Callable[[], float]:
    """Seconds of one large matrix product, by calling."""
    a, b = (torch.randn(SIDE, SIDE, dtype=getattr(torch, number_format)) for _ in range(2))
    return partial(timed, partial(torch.mm, a, b))


def against_peer(folder: Path, number_format: str) -> Iterator[Row]:
    """Tokens a second, their ratio, peak memory, and the share of what the machine can multiply."""
    with ExitStack() as stack:

        def worker(build: Callable[..., Callable[[], float]], *arguments: object) -> Worker:
            return stack.enter_context(Worker(partial(build, *arguments, number_format)))

        peers = {way: worker(peer_step, folder, way) for way in Peer.EXPERTS}
        best = fastest(peers)
        tasks = [worker(our_step, ()), peers[best], worker(ceiling)]
        for task in tasks:
            task()
        own, theirs, limits = interleaved(tasks, rounds=ROUNDS)
        peaks = [task.peak() / 2**20 for task in tasks]
    n_tokens = BATCH * LENGTH
    flops = n_tokens * train_flops_per_token(config().model, LENGTH)
    shares = [100 * flops / s * t / (2 * SIDE**3) for s, t in zip(own, limits, strict=True)]
    what = f"training, {number_format}"
    yield median_row(f"{what}: ours", [n_tokens / s for s in own], "tokens/s")
    yield median_row(f"{what}: transformers {best}", [n_tokens / s for s in theirs], "tokens/s")
    yield ratio_row(f"{what}: ours / transformers", theirs, own, goal=GOALS[number_format])
    yield Row(f"{what}: peak memory, ours", peaks[0], "MiB")
    yield Row(f"{what}: peak memory, transformers {best}", peaks[1], "MiB")
    yield Row(f"{what}: peak memory, ours / transformers", peaks[0] / peaks[1], "x", "", "<= 0.7")
    rates = [2 * SIDE**3 / 1e9 / t for t in limits]
    yield median_row(f"{what}: matrix product of {SIDE}", rates, "GFLOP/s")
    yield median_row(f"{what}: share of that", shares, "%", goal=">= 15")


def between(name: str, one: Sequence[str], other: Sequence[str], *, goal: float) -> list[Row]:
    """Tokens a second of one of our models over those of another, in bfloat16."""
    with ExitStack() as stack:
        builds = [partial(our_step, words, "bfloat16") for words in (one, other)]
        tasks = [stack.enter_context(Worker(build)) for build in builds]
        for task in tasks:
            task()
        own, others = interleaved(tasks, rounds=ROUNDS)
    active = [count_parameters(config(*words).model).active / 1e6 for words in (one, other)]
    return [
        Row(f"{name}: active parameters", active[0], "M", f"{active[1]:.3g} of the other"),
        ratio_row(name, others, own, goal=goal),
    ]
