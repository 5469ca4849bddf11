"""Suite `decode ckpt=`: drafts of the MTP modules of a checkpoint against plain decoding.

Prompts come from the validation split. Greedy texts should be the same with and without drafts: in
float32 all are, in bfloat16 rounding lets some differ.
"""

from collections.abc import Iterator, Sequence

from mla_lm.bench.decode import FORMATS, GREEDY
from mla_lm.bench.report import Row, ratio, row, timed
from mla_lm.checkpoint.record import RECORD, load_checkpoint, locate, read, require_corpus
from mla_lm.data import prepare
from mla_lm.errors import UserError
from mla_lm.generation import Counts, Decoder, Sampling
from mla_lm.model import Transformer

N_PROMPTS, PROMPT, NEW_TOKENS = 100, 32, 64
WAYS = {"greedy": GREEDY, "temperature 1": Sampling()}


def run(ckpt: str) -> Iterator[Row]:
    """Equality, speed and acceptance in both number formats, greedy and sampled."""
    path = locate(ckpt)
    model, cfg, _ = load_checkpoint(path)
    if not model.cfg.mtp_depth:
        raise UserError(f"ckpt={ckpt}: has no MTP module to draft with (model.mtp_depth=0)")
    corpus = prepare(cfg.data)
    require_corpus(path, read(path, RECORD)[0], corpus.manifest)
    stride = max(1, (len(corpus.val) - PROMPT) // N_PROMPTS)
    starts = range(0, len(corpus.val) - PROMPT, stride)[:N_PROMPTS]
    prompts = [corpus.val[start : start + PROMPT].tolist() for start in starts]
    for name, dtype in FORMATS.items():
        model = model.to(dtype)
        for way, sampling in WAYS.items():
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
        model,
        [prompt],
        max_new_tokens=NEW_TOKENS,
        sampling=sampling,
        n_drafts=n_drafts,
        seed=seed,
    )
    steps = iter(decoder)
    ids = next(steps)[0]
    seconds = timed(lambda: ids.extend(token for new in steps for token in new[0]))
    return ids, (len(ids) - 1) / seconds, decoder.counts
