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

from mla_lm.accounting import cache_numbers_per_token
from mla_lm.bench.peer import Peer, write_peer
from mla_lm.bench.report import Row, interleaved, median_row, timed
from mla_lm.cli import load_config
from mla_lm.generation import Decoder, Sampling
from mla_lm.model import Transformer

MODEL = (
    "data.seq_len=8448",
    "model.vocab_size=8192",
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
    peers = {name: Peer(folder, *name.split()) for name in peer_names()}
    ours = {name: build("mla", name) for name in FORMATS}
    prompt = torch.randint(8192, (1, contexts[0]), generator=torch.Generator().manual_seed(1))
    assert_equal_choices(ours["float32"], peers["float32 eager"], prompt)

    peer = fastest({name: peers[name].decoding(prompt, STEPS) for name in peers})
    own = fastest({name: decoding(ours[name], prompt) for name in ours})
    for context in contexts:
        tokens = torch.randint(8192, (1, context))
        sides = [
            decoding(ours[own], tokens),
            peers[peer].decoding(tokens, STEPS),
        ]
        name = f"decode behind {context}"
        yield from compared(name, sides, 1, (own, f"transformers {peer}"))

    peer = fastest({name: peers[name].prefill(prompt) for name in peers})
    own = fastest({name: prefill(ours[name], prompt) for name in ours})
    tokens = torch.randint(8192, (1, 2048))
    sides = [prefill(ours[own], tokens), peers[peer].prefill(tokens)]
    yield from compared("prefill 2048", sides, 2048, (own, f"transformers {peer}"))


def peer_names() -> list[str]:
    """The peer's ways to run: a number format and an implementation of the experts."""
    return [f"{number_format} {experts}" for number_format in FORMATS for experts in Peer.EXPERTS]


def assert_equal_choices(model: Transformer, peer: Peer, prompt: Tensor) -> None:
    """Both continue a prompt with the same tokens."""
    decoder = Decoder(model, prompt.tolist(), max_new_tokens=2 * STEPS, sampling=GREEDY)
    ids = [token for new in decoder for token in new[0]]
    assert ids == peer.continuation(prompt, 2 * STEPS), "the two sides choose other tokens"


def decoding(model: Transformer, prompt: Tensor) -> Step:
    """Seconds a token over the next `STEPS` tokens behind a prompt."""
    n_tokens = (ROUNDS + 2) * STEPS  # the first by the prompt, one round to warm up
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
    sides, formats = [], []
    for kind, absorb in (one, other):
        steps = {f: step(build(kind, f), batch, context, absorb=absorb) for f in FORMATS}
        formats.append(fastest(steps))
        sides.append(steps[formats[-1]])
    what = f"{name}, batch {batch} behind {context}"
    rows = list(compared(what, sides, batch, (formats[0], formats[1])))
    goal_text = "" if goal is None else f">= {goal:g}"
    yield from (*rows[:-1], rows[-1]._replace(goal=goal_text))


def step(model: Transformer, batch: int, context: int, *, absorb: bool | None = None) -> Step:
    """Seconds of one step of a batch whose cache holds `context` tokens of noise."""
    held = model.new_cache(batch, context + 1, absorb=absorb)
    for layer in held.layers:
        for tensor in layer.tensors:
            tensor.normal_()
    tokens = torch.randint(8192, (batch, 1))

    @torch.inference_mode()
    def once() -> None:
        held.lengths = [context] * batch
        model(tokens, cache=held)

    return lambda: statistics.median(timed(once) for _ in range(STEPS))


def compared(
    name: str, sides: Sequence[Step], n_tokens: int, labels: tuple[str, str]
) -> Iterator[Row]:
    """Tokens a second of two sides, round by round, and the ratio of their speeds."""
    for side in sides:
        side()
    seconds = interleaved(sides, rounds=ROUNDS)
    for label, values in zip(labels, seconds, strict=True):
        yield median_row(f"{name}: {label}", [n_tokens / value for value in values], "tokens/s")
    yield median_row(f"{name}: ratio", [b / a for a, b in zip(*seconds, strict=True)], "x")


def fastest(sides: dict[str, Step]) -> str:
    """The name of the side that takes least; each is run twice."""
    return min(sides, key=lambda name: (sides[name](), sides[name]())[1])


def cache_sizes() -> Iterator[Row]:
    """Bytes a token of real caches, which must be those of the formula."""
    for kind in KINDS:
        model = build(kind, "bfloat16")
        held = model.new_cache(1, 1024)
        n_bytes = held.n_bytes / 1024
        assert n_bytes == 2 * cache_numbers_per_token(model.cfg)
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
