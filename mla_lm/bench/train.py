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

from mla_lm.bench import decode, gpu, steps
from mla_lm.bench.lightning_step import overhead
from mla_lm.bench.peer import Peer, write_peer
from mla_lm.bench.report import Row, fastest, interleaved, median_row, ratio_row, timed
from mla_lm.bench.worker import Worker
from mla_lm.config import RunConfig
from mla_lm.config.compose import load_config
from mla_lm.cost import count_parameters, train_flops_per_token
from mla_lm.model import Transformer

BATCH, LENGTH = 8, 512
ROUNDS = 5
GOALS = {"bfloat16": 2.5, "float32": 1.4}
SIDE = 4096  # of the square matrices of the ceiling
COPIED = 2**28  # bytes
MODEL = (*decode.MODEL, f"data.seq_len={LENGTH}", f"data.batch_size={BATCH}", "optim=adamw")


def run() -> list[Row]:
    """All figures; those of a GPU where there is one."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        require_equal(folder)
        rows = [row for number_format in GOALS for row in against_peer(folder, number_format)]
    rows += between("experts / dense", (), dense_words(), goal=0.6)
    rows += between("mla / mha", (), ("model/attention=mha",), goal=0.9)
    rows += between("checkpointed / not", ("trainer.activation_checkpointing=non_reentrant",), ())
    rows += overhead()
    if torch.cuda.is_available():
        rows += gpu.run()
    return rows


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


def product(number_format: str) -> Callable[[], float]:
    """Seconds of one large matrix product, by calling."""
    a, b = (torch.randn(SIDE, SIDE, dtype=getattr(torch, number_format)) for _ in range(2))
    return partial(timed, partial(torch.mm, a, b))


def copy() -> Callable[[], float]:
    """Seconds of copying `COPIED` bytes, by calling."""
    a, b = (torch.ones(COPIED, dtype=torch.uint8) for _ in range(2))
    return partial(timed, partial(a.copy_, b))


def together(*tasks: Worker) -> tuple[list[list[float]], list[float]]:
    """Seconds of each in every round after one for nothing, and the peak of each in MiB."""
    for task in tasks:
        task()
    return interleaved(tasks, rounds=ROUNDS), [task.peak() / 2**20 for task in tasks]


def against_peer(folder: Path, number_format: str) -> Iterator[Row]:
    """Tokens a second, their ratio, peak memory, and the share of what the machine can multiply."""
    with ExitStack() as stack:

        def worker(build: Callable[..., Callable[[], float]], *arguments: object) -> Worker:
            return stack.enter_context(Worker(partial(build, *arguments)))

        peers = {way: worker(peer_step, folder, way, number_format) for way in Peer.EXPERTS}
        best = fastest(peers)
        (own, theirs, products, copies), peaks = together(
            worker(our_step, (), number_format),
            peers[best],
            worker(product, number_format),
            worker(copy),
        )
    n_tokens = BATCH * LENGTH
    flops = n_tokens * train_flops_per_token(config().model, LENGTH)
    what = f"training, {number_format}"
    yield speed_row(f"{what}: ours", own, peaks[0])
    yield speed_row(f"{what}: transformers {best}", theirs, peaks[1])
    yield ratio_row(f"{what}: ours / transformers", theirs, own, goal=GOALS[number_format])
    yield Row(f"{what}: peak memory, ours / transformers", peaks[0] / peaks[1], "x", "", "<= 0.7")
    rates = [2 * SIDE**3 / 1e9 / s for s in products]
    yield median_row(f"{what}: matrix product of {SIDE}", rates, "GFLOP/s")
    shares = [100 * flops / s / 1e9 / rate for s, rate in zip(own, rates, strict=True)]
    yield median_row(f"{what}: share of that", shares, "%", goal=">= 15")
    yield median_row(f"{what}: copying", [COPIED / 1e9 / s for s in copies], "GB/s")


def speed_row(name: str, seconds: Sequence[float], peak: float) -> Row:
    """Tokens a second of steps that took so long."""
    return median_row(name, [BATCH * LENGTH / s for s in seconds], "tokens/s", peak=peak)


def between(
    name: str, one: Sequence[str], other: Sequence[str], *, goal: float | None = None
) -> list[Row]:
    """Tokens a second of one of our models over those of another, in bfloat16."""
    with ExitStack() as stack:
        builds = [partial(our_step, words, "bfloat16") for words in (one, other)]
        workers = [stack.enter_context(Worker(build)) for build in builds]
        (own, others), peaks = together(*workers)
    active = [count_parameters(config(*words).model).active / 1e6 for words in (one, other)]
    names = [f"{name}: {n:.3g}M active" for name, n in zip(name.split(" / "), active, strict=True)]
    return [
        speed_row(names[0], own, peaks[0]),
        speed_row(names[1], others, peaks[1]),
        ratio_row(name, others, own, goal=goal),
    ]
