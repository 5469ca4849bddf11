"""Suite `decode`: against `transformers`, between attention kinds, with and without MTP drafts.

The model has 43.7M parameters and random weights; speed does not depend on them. Every side runs
in the number format that is faster for it, float32 or bfloat16. In float32 ours and the peer must
first choose the same tokens, and absorbed and materialised MLA give the same logits. Our own kinds
are compared behind a cache of noise instead of a long prompt. With `ckpt=`, drafts of its MTP
modules against plain decoding: greedy texts are the same in float32, in bfloat16 not quite all.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from mla_lm.bench import steps
from mla_lm.bench.report import Row, Task, fastest, interleaved, ratio, row, timed
from mla_lm.checkpoint.corpus import settle_corpus
from mla_lm.checkpoint.find import load_checkpoint, locate, read
from mla_lm.checkpoint.record import RECORD, require_corpus
from mla_lm.config.compose import load_config
from mla_lm.data import prepare
from mla_lm.errors import UserError
from mla_lm.generation import Counts, Decoder, Sampling
from mla_lm.machine import kernels_for
from mla_lm.model import Transformer
from mla_lm.model.cache import Cache

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
CONTEXTS = (256, 2048, 4096)  # tokens before the first one that is decoded
PREFILL = 2048  # tokens
ABSORBED = {"absorbed": True, "materialised": False}  # ways of MLA; otherwise it chooses
COMPARED = (  # two sides, rows in the batch, cached tokens
    ("absorbed", "materialised", 1, 2048),
    ("mla", "mha", 16, 2048),
    ("mla", "gqa", 1, 2048),
    ("mla", "gqa", 1, 8192),
    ("mla", "gqa", 16, 2048),
    ("mla", "gqa", 16, 8192),
)
FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROUNDS, STEPS = 7, 8
N_PROMPTS, PROMPT, NEW_TOKENS = 100, 32, 64  # with and without drafts
GREEDY = Sampling(temperature=0)
DRAFTED = {"greedy": GREEDY, "temperature 1": Sampling()}
Writer = Callable[[Tensor], Iterator[int]]  # of greedy ids behind a prompt


def run(ckpt: str | None = None) -> list[Row]:
    """All figures."""
    with TemporaryDirectory() as name:
        steps.write_peer(build("mla", "float32"), Path(name))
        rows = [*against_peer(Path(name))]
    assert_absorbed_equals_materialised()
    rows += chain.from_iterable(between(*sides) for sides in COMPARED)
    return [*rows, *(drafts(ckpt) if ckpt else ())]


@cache
def build(kind: str, number_format: str) -> Transformer:
    """The model with one kind of attention."""
    torch.manual_seed(0)
    cfg = load_config([*MODEL, f"model/attention={kind}"]).model
    return Transformer(cfg).eval().requires_grad_(False).to(FORMATS[number_format])


def against_peer(folder: Path) -> Iterator[Row]:
    """Greedy decoding and prefill of one row."""
    ours = {f"ours, {name}": partial(greedy, build("mla", name)) for name in FORMATS}
    peers = {
        f"transformers, {name} {experts}": partial(
            steps.greedy, steps.load_peer(folder, experts, dtype).eval()
        )
        for name, dtype in FORMATS.items()
        for experts in steps.EXPERTS
    }
    for context in CONTEXTS:
        prompt = torch.randint(VOCAB, (1, context))
        assert_equal_choices(ours["ours, float32"], peers["transformers, float32 eager"], prompt)
        sides = [{n: decoding(way(prompt)) for n, way in ways.items()} for ways in (ours, peers)]
        yield from compared(f"decoding behind {context} tokens", *sides)
    prompt = torch.randint(VOCAB, (1, PREFILL))
    sides = [{n: prefill(way, prompt) for n, way in ways.items()} for ways in (ours, peers)]
    yield from compared(f"prefill of {PREFILL} tokens", *sides, n_tokens=PREFILL)


def greedy(model: Transformer, prompt: Tensor) -> Iterator[int]:
    """Ids behind a prompt (1, T); no longer than a comparison needs."""
    n_tokens = (ROUNDS + 3) * STEPS  # the first by the prefill, two rounds to choose the way
    for new in Decoder(model, prompt.tolist(), max_new_tokens=n_tokens, sampling=GREEDY):
        yield from new[0]


def assert_equal_choices(one: Writer, other: Writer, prompt: Tensor) -> None:
    """Both continue a prompt (1, T) with the same tokens."""
    ids = [list(islice(way(prompt), 2 * STEPS)) for way in (one, other)]
    assert ids[0] == ids[1], "the two sides choose other tokens"


def decoding(tokens: Iterator[int]) -> Task:
    """Measures the median seconds per token over the next `STEPS` tokens."""
    next(tokens)
    return lambda: statistics.median(timed(lambda: next(tokens)) for _ in range(STEPS))


def prefill(way: Writer, prompt: Tensor) -> Task:
    """Measures the seconds from a prompt to its first new token."""
    return lambda: timed(lambda: next(way(prompt)))


def compared(
    name: str, one: Mapping[str, Task], other: Mapping[str, Task], *, n_tokens: int = 1
) -> Iterator[Row]:
    """Tokens per second of two sides, each in the fastest of its ways, and their ratio."""
    tasks = {way: ways[way] for ways in (one, other) for way in (fastest(ways),)}
    found = interleaved(tasks, rounds=ROUNDS)
    for way, seconds in found.items():
        yield row(f"{name}: {way}", [n_tokens / s for s in seconds], "tokens/s")
    yield ratio(f"{name}: ratio", *reversed(found.values()))


def between(one: str, other: str, batch: int, context: int) -> Iterator[Row]:
    """One decoding step of two of our own sides."""
    sides = [
        {f"{side}, {name}": step(side, name, batch, context) for name in FORMATS}
        for side in (one, other)
    ]
    name = f"{one} / {other}, batch {batch} behind {context} tokens"
    yield from compared(name, *sides, n_tokens=batch)


def filled_cache(model: Transformer, batch: int, context: int, absorb: bool | None) -> Cache:
    """A KV cache with the same noise every time, and room for one more token."""
    torch.manual_seed(0)
    cached = model.new_cache(batch, context + 1, absorb=absorb)
    for layer in cached.layers:
        for tensor in layer.tensors:
            tensor.normal_()
    cached.lengths = [context] * batch
    return cached


@torch.inference_mode()
def assert_absorbed_equals_materialised() -> None:
    """Both ways of MLA give the same logits behind the same cached latents."""
    model, tokens = build("mla", "float32"), torch.tensor([[3], [5]])
    caches = [filled_cache(model, 2, 64, absorb) for absorb in ABSORBED.values()]
    logits = [model(tokens, cache=cached).logits for cached in caches]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


def step(side: str, number_format: str, batch: int, context: int) -> Task:
    """Measures a step of a batch whose cache holds `context` tokens of noise."""
    absorb = ABSORBED.get(side)
    model = build("mla" if side in ABSORBED else side, number_format)
    cached = filled_cache(model, batch, context, absorb)
    tokens = torch.randint(VOCAB, (batch, 1))

    @torch.inference_mode()
    def once() -> None:
        cached.lengths = [context] * batch
        with kernels_for(context if absorb is False else batch, cached.dtype):
            model(tokens, cache=cached)

    return lambda: statistics.median(timed(once) for _ in range(STEPS))


def drafts(ckpt: str) -> Iterator[Row]:
    """Equality, speed and acceptance in both number formats, greedy and sampled."""
    path = locate(ckpt)
    model, cfg, tokenizer = load_checkpoint(path)
    if not model.cfg.mtp_depth:
        raise UserError(f"ckpt={ckpt}: has no MTP module to draft with (model.mtp_depth=0)")
    record = read(path, RECORD)[0]
    data, listed = settle_corpus(cfg.data, record, load_config().data.model_dump())
    corpus = prepare(data, tokenizer=tokenizer, listed=listed)
    require_corpus(path, record, corpus.manifest)
    stride = max(1, (len(corpus.val) - PROMPT) // N_PROMPTS)
    starts = range(0, len(corpus.val) - PROMPT, stride)[:N_PROMPTS]
    prompts = [corpus.val[start : start + PROMPT].tolist() for start in starts]
    for name, dtype in FORMATS.items():
        model = model.to(dtype)
        for way, sampling in DRAFTED.items():
            yield from gains(model, prompts, sampling, f"speculation, {way}, {name}")


def gains(
    model: Transformer, prompts: Sequence[Sequence[int]], sampling: Sampling, name: str
) -> Iterator[Row]:
    """Both ways prompt by prompt: equal texts, speeds, accepted drafts, tokens per step."""
    pairs = [
        [write(model, prompt, sampling, n, seed) for n in (0, model.cfg.mtp_depth)]
        for seed, prompt in enumerate(prompts)
    ]
    if not sampling.temperature:
        equal = sum(plain[0] == drafted[0] for plain, drafted in pairs) / len(pairs)
        yield row(f"{name}: equal texts", [equal], "")
    speeds = [[speed for _, speed, _ in texts] for texts in zip(*pairs, strict=True)]
    yield row(f"{name}: plain", speeds[0], "tokens/s")
    yield row(f"{name}: with drafts", speeds[1], "tokens/s")
    yield ratio(f"{name}: ratio", *reversed(speeds))
    counts = [drafted[2] for _, drafted in pairs]
    for depth, kept in enumerate(zip(*(c.acceptance for c in counts), strict=True), start=1):
        yield row(f"{name}: acceptance, depth {depth}", kept, "")
    yield row(f"{name}: tokens per step", [c.tokens_per_step for c in counts], "")


def write(
    model: Transformer, prompt: Sequence[int], sampling: Sampling, n_drafts: int, seed: int
) -> tuple[list[int], float, Counts]:
    """New ids, tokens per second behind the first, and the decoder's counters."""
    decoder = Decoder(
        model, [prompt], max_new_tokens=NEW_TOKENS, sampling=sampling, n_drafts=n_drafts, seed=seed
    )
    decoded = iter(decoder)
    ids = next(decoded)[0]
    seconds = timed(lambda: ids.extend(token for new in decoded for token in new[0]))
    return ids, (len(ids) - 1) / seconds, decoder.counts
