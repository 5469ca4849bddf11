"""Suite `decode`: a step of decoding against `transformers` and between attention kinds.

The model has 43.7M parameters and random weights: speed does not depend on them, and in float32
both sides must first choose the same tokens. Every side runs in the number format that is faster
for it on this machine, float32 or bfloat16. A cache for comparisons between our own kinds is
filled with noise instead of a long prompt.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from mla_lm.bench.peer import Peer, write_peer
from mla_lm.bench.report import Row, fastest, interleaved, median_row, timed
from mla_lm.config.compose import load_config
from mla_lm.cost import cache_elements_per_token
from mla_lm.generation import Decoder, Sampling
from mla_lm.machine import kernels_for
from mla_lm.model import Transformer

VOCAB = 8192
MODEL = (
    "data.seq_len=8448",
    f"model.vocab_size={VOCAB}",
    "model.dim=384",
    "model.n_layers=8",
    "model.n_heads=6",
    "model.n_dense_layers=1",
    "model.inter_dim=1024",
    "model.mtp_depth=0",
    "model.tie_embeddings=true",
    "model.sizes.head_dim=64",
    "model.sizes.nope_head_dim=64",
    "model.sizes.rope_head_dim=32",
    "model.sizes.n_kv_heads=2",
    "model.sizes.kv_lora_rank=128",
    "model.sizes.moe_inter_dim=256",
    "model.sizes.n_routed_experts=16",
    "model.sizes.n_activated_experts=4",
)
GOALS = {256: 2.0, 2048: 4.0, 4096: 8.0}  # by context
PREFILL = 2048  # tokens
KINDS = ("mla", "mha", "gqa", "mqa")
FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROUNDS, STEPS = 7, 8
GREEDY = Sampling(temperature=0)
Step = Callable[[], float]


def run(contexts: Sequence[int]) -> list[Row]:
    """All figures; `contexts` are those of the comparison with `transformers`."""
    with TemporaryDirectory() as name:
        write_peer(build("mla", "float32"), Path(name))
        rows = [*against_peer(Path(name), contexts)]
    assert_absorbed_equals_reexpanded()
    rows += versus("absorbed / re-expanded", ("mla", True), ("mla", False), 1, 2048, goal=3)
    rows += versus("mla / mha", ("mla", None), ("mha", None), 16, 2048, goal=1.5)
    for batch in (1, 16):
        for context in (2048, 8192):
            rows += versus("mla / gqa", ("mla", None), ("gqa", None), batch, context)
    return [*rows, *cache_sizes()]


@cache
def build(kind: str, number_format: str) -> Transformer:
    """The model with one kind of attention."""
    torch.manual_seed(0)
    cfg = load_config([*MODEL, f"model/attention={kind}"]).model
    return Transformer(cfg).eval().requires_grad_(False).to(FORMATS[number_format])


def against_peer(folder: Path, contexts: Sequence[int]) -> Iterator[Row]:
    """Greedy decoding and prefill at batch 1: tokens a second, and their ratio to the peer's."""
    peers = {
        f"{f} {experts}": Peer(folder, f, experts) for f in FORMATS for experts in Peer.EXPERTS
    }
    ours = {name: build("mla", name) for name in FORMATS}
    for context in contexts:
        prompt = torch.randint(VOCAB, (1, context))
        assert_equal_choices(ours["float32"], peers["float32 eager"], prompt)
        yield from compared(
            f"decode behind {context}",
            {name: decoding(model, prompt) for name, model in ours.items()},
            {f"transformers {name}": p.decoding(prompt, STEPS) for name, p in peers.items()},
            goal=GOALS.get(context),
        )
    prompt = torch.randint(VOCAB, (1, PREFILL))
    yield from compared(
        f"prefill {PREFILL}",
        {name: prefill(model, prompt) for name, model in ours.items()},
        {f"transformers {name}": peer.prefill(prompt) for name, peer in peers.items()},
        n_tokens=PREFILL,
        goal=1.5,
    )


def assert_equal_choices(model: Transformer, peer: Peer, prompt: Tensor) -> None:
    """Both continue a prompt with the same tokens."""
    decoder = Decoder(model, prompt.tolist(), max_new_tokens=2 * STEPS, sampling=GREEDY)
    ids = [token for new in decoder for token in new[0]]
    assert ids == peer.continuation(prompt, 2 * STEPS), "the two sides choose other tokens"


@torch.inference_mode()
def assert_absorbed_equals_reexpanded() -> None:
    """Both ways of MLA give the same logits behind the same latents."""
    model = build("mla", "float32")
    held = model.new_cache(2, 65)
    for layer in held.layers:
        layer.tensors[0].normal_()
    logits = []
    for absorb in (True, False):
        held.lengths = [64, 64]
        for layer in held.layers:
            layer.absorb = absorb
        logits.append(model(torch.tensor([[3], [5]]), cache=held).logits)
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


def decoding(model: Transformer, prompt: Tensor) -> Step:
    """Seconds a token over the next `STEPS` tokens behind a prompt."""
    n_tokens = (ROUNDS + 3) * STEPS  # the first by the prompt, two rounds to choose the way
    decoder = Decoder(model, prompt.tolist(), max_new_tokens=n_tokens, sampling=GREEDY)
    steps = iter(decoder)
    next(steps)
    return lambda: statistics.median(timed(lambda: next(steps)) for _ in range(STEPS))


def prefill(model: Transformer, prompt: Tensor) -> Step:
    """Seconds from a prompt to its first new token."""

    def first_token() -> None:
        next(iter(Decoder(model, prompt.tolist(), max_new_tokens=1, sampling=GREEDY)))

    return lambda: timed(first_token)


def versus(
    name: str,
    one: tuple[str, bool | None],
    other: tuple[str, bool | None],
    batch: int,
    context: int,
    *,
    goal: float | None = None,
) -> Iterator[Row]:
    """One step of two of our own sides, each a kind of attention and whether MLA absorbs."""
    sides = [
        {f"{kind} {f}": step(build(kind, f), batch, context, absorb=absorb) for f in FORMATS}
        for kind, absorb in (one, other)
    ]
    yield from compared(
        f"{name}, batch {batch} behind {context}", *sides, n_tokens=batch, goal=goal
    )


def step(model: Transformer, batch: int, context: int, *, absorb: bool | None = None) -> Step:
    """Seconds of one step of a batch whose cache holds `context` tokens of noise."""
    held = model.new_cache(batch, context + 1, absorb=absorb)
    for layer in held.layers:
        for tensor in layer.tensors:
            tensor.normal_()
    tokens = torch.randint(VOCAB, (batch, 1))

    @torch.inference_mode()
    def once() -> None:
        held.lengths = [context] * batch
        with kernels_for(context if absorb is False else batch, held.dtype):
            model(tokens, cache=held)

    return lambda: statistics.median(timed(once) for _ in range(STEPS))


def compared(
    name: str, *sides: dict[str, Step], n_tokens: int = 1, goal: float | None = None
) -> Iterator[Row]:
    """Tokens a second of two sides, each in the fastest of its ways, and their ratio."""
    labels = [fastest(ways) for ways in sides]
    steps = [ways[label] for ways, label in zip(sides, labels, strict=True)]
    seconds = interleaved(steps, rounds=ROUNDS)
    for label, values in zip(labels, seconds, strict=True):
        yield median_row(f"{name}: {label}", [n_tokens / value for value in values], "tokens/s")
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    yield median_row(f"{name}: ratio", ratios, "x", goal="" if goal is None else f">= {goal:g}")


def cache_sizes() -> Iterator[Row]:
    """Bytes a token of real caches, which must be those of the formula."""
    for kind in KINDS:
        model = build(kind, "bfloat16")
        held = model.new_cache(1, 1024)
        n_bytes = held.n_bytes / 1024
        assert n_bytes == 2 * cache_elements_per_token(model.cfg)
        yield Row(f"cache, {kind}, bfloat16", n_bytes, "bytes/token")


def curves(contexts: Sequence[int], batch: int) -> dict[str, list[float]]:
    """Steps a second of each kind behind growing contexts, in its faster number format."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for context in contexts:
        sides = []
        for kind in KINDS:
            steps = {f: step(build(kind, f), batch, context) for f in FORMATS}
            sides.append(steps[fastest(steps)])
        for kind, seconds in zip(KINDS, interleaved(sides, rounds=ROUNDS), strict=True):
            found[kind].append(batch / statistics.median(seconds))
    return found
