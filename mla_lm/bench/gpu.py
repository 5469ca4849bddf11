"""A training step on one GPU: about 100M active parameters, bfloat16, 64k tokens.

Ours and `transformers`' DeepseekV3ForCausalLM with `grouped_mm`, both eager and compiled, each in a
process of its own, in turns; and their share of the GPU's dense bfloat16 peak. Then decoding one
row of the same model.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from mla_lm.bench import steps
from mla_lm.bench.peer import write_peer
from mla_lm.bench.report import Row, interleaved, median_row, ratio_row, timed
from mla_lm.bench.worker import Worker
from mla_lm.config import ModelConfig, RunConfig
from mla_lm.config.compose import load_config
from mla_lm.cost import train_flops_per_token
from mla_lm.generation import generate
from mla_lm.model import Transformer

ROUNDS, WARM_UP = 5, 3
NEW = 128  # tokens that are decoded
PEAK = 989e12  # dense bfloat16 operations a second of an H100 or H200
MODEL = (
    "data.seq_len=1024",
    "data.batch_size=64",
    "optim=adamw",
    "model.vocab_size=32768",
    "model.dim=768",
    "model.n_layers=10",
    "model.n_heads=12",
    "model.n_dense_layers=1",
    "model.inter_dim=2048",
    "model.mtp_depth=0",
    "model.sizes.head_dim=64",
    "model.sizes.nope_head_dim=64",
    "model.sizes.rope_head_dim=32",
    "model.sizes.kv_lora_rank=256",
    "model.sizes.moe_inter_dim=512",
    "model.sizes.n_routed_experts=32",
    "model.sizes.n_activated_experts=4",
)


def run(words: tuple[str, ...] = MODEL, device: str = "cuda") -> Iterator[Row]:
    """All figures; `words` compose the model and the batch."""
    cfg = load_config(words)
    n_tokens = cfg.data.batch_size * cfg.data.seq_len
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        mine = steps.ours(cfg)
        assert isinstance(mine.model, Transformer)
        write_peer(mine.model, folder)
        steps.assert_equal(mine, steps.peer(folder, "grouped_mm"), batch(cfg, "cpu")[:1])
        del mine
        ways = {
            "ours, eager": partial(our_step, words, device, compiled=False),
            "ours, compiled": partial(our_step, words, device, compiled=True),
            "transformers, eager": partial(peer_step, folder, words, device, compiled=False),
            "transformers, compiled": partial(peer_step, folder, words, device, compiled=True),
        }
        tasks = {way: stack.enter_context(Worker(build)) for way, build in ways.items()}
        for task in tasks.values():
            for _ in range(WARM_UP):
                task()
        seconds = dict(zip(tasks, interleaved([*tasks.values()], rounds=ROUNDS), strict=True))
        peaks = {way: task.peak() / 2**20 for way, task in tasks.items()}
    for way in tasks:
        speeds = [n_tokens / s for s in seconds[way]]
        yield median_row(f"GPU: {way}", speeds, "tokens/s", peak=peaks[way])
    for how, goal in (("eager", 1.5), ("compiled", 1.15)):
        sides = (seconds[f"transformers, {how}"], seconds["ours, compiled"])
        yield ratio_row(f"GPU: ours, compiled / transformers, {how}", *sides, goal=goal)
    flops = n_tokens * train_flops_per_token(cfg.model, cfg.data.seq_len)
    shares = [100 * flops / s / PEAK for s in seconds["ours, compiled"]]
    yield median_row("GPU: share of 989 TFLOP/s", shares, "%", goal=">= 26")
    yield from decoding(cfg.model, device)


def decoding(cfg: ModelConfig, device: str) -> Iterator[Row]:
    """One greedy row in bfloat16."""
    model = Transformer(cfg).to(device, torch.bfloat16).eval()
    prompt = torch.arange(1, 9, device=device).unsqueeze(0)
    decode = partial(generate, model, prompt, max_new_tokens=NEW, temperature=0)
    (seconds,) = interleaved([partial(timed, decode)], rounds=ROUNDS)
    yield median_row("GPU: decoding", [NEW / s for s in seconds], "tokens/s")


def our_step(words: tuple[str, ...], device: str, *, compiled: bool) -> Callable[[], float]:
    """Seconds of a step of ours, by calling."""
    cfg = load_config([*words, f"trainer.compile={str(compiled).lower()}"])
    return partial(steps.seconds, steps.ours(cfg, device), batch(cfg, device), "bfloat16")


def peer_step(
    folder: Path, words: tuple[str, ...], device: str, *, compiled: bool
) -> Callable[[], float]:
    """Seconds of a step of the peer's, by calling."""
    side = steps.peer(folder, "grouped_mm", device, compiled=compiled)
    return partial(steps.seconds, side, batch(load_config(words), device), "bfloat16")


def batch(cfg: RunConfig, device: str) -> Tensor:
    """Random tokens (B, T + 1), the same every time."""
    generator = torch.Generator().manual_seed(1)
    shape = (cfg.data.batch_size, cfg.data.seq_len + 1)
    return torch.randint(cfg.model.vocab_size, shape, generator=generator).to(device)
