"""Suite `decode`, with a trained checkpoint: drafts of its MTP modules against plain decoding.

Prompts are beginnings of rows of the validation split. Greedy continuations should be the same
with and without drafts; where rounding lets them differ, the gap of the two best logits is told.
"""

import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from mla_lm.bench.report import Row, median_row, timed
from mla_lm.checkpoint.record import RECORD, load_checkpoint, locate, read, require_corpus
from mla_lm.data import EvalLoader, prepare
from mla_lm.errors import UserError
from mla_lm.generation import Counts, Decoder, Sampling
from mla_lm.model import Transformer

N_PROMPTS, PROMPT, NEW_TOKENS = 200, 32, 64
GREEDY = Sampling(temperature=0)


class Comparison(NamedTuple):
    """One prompt, decoded plainly and with drafts."""

    plain: list[int]
    drafted: list[int]
    speeds: tuple[float, float]  # tokens a second
    counts: Counts


def run(ckpt: str) -> list[Row]:
    """Equality in both number formats; speed and acceptance in the faster, greedy and sampled."""
    path = locate(ckpt)
    model, run_cfg, _ = load_checkpoint(path)
    if not model.cfg.mtp_depth:
        raise UserError(f"ckpt={ckpt}: has no MTP module to draft with (model.mtp_depth=0)")
    corpus = prepare(run_cfg.data)
    require_corpus(path, read(path, RECORD)[0], corpus.manifest)
    loader = EvalLoader(corpus.val, seq_len=PROMPT + NEW_TOKENS, batch_size=1)
    stride = max(1, loader.n_windows // N_PROMPTS)
    rows = [row[0, :PROMPT].tolist() for row in loader if row.shape[1] > PROMPT]
    prompts = rows[::stride][:N_PROMPTS]

    found: dict[str, tuple[Transformer, list[Comparison]]] = {}
    figures: list[Row] = []
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = load_checkpoint(path)[0].to(dtype)
        found[name] = (model, [compare(model, prompt, GREEDY) for prompt in prompts])
        figures += equality(*found[name], prompts, name)
    fastest = max(found, key=lambda name: statistics.median(c.speeds[0] for c in found[name][1]))
    model, greedy = found[fastest]
    figures += gains(greedy, f"greedy, {fastest}")
    sampled = [compare(model, p, Sampling(), seed=seed) for seed, p in enumerate(prompts)]
    return [*figures, *gains(sampled, f"temperature 1, {fastest}")]


def compare(
    model: Transformer, prompt: list[int], sampling: Sampling, *, seed: int = 0
) -> Comparison:
    """Both ways behind one prompt, one after the other; the prompt's own pass is not timed."""
    plain, speed, _ = decode(model, prompt, sampling, n_drafts=0, seed=seed)
    n_drafts = model.cfg.mtp_depth
    drafted, with_drafts, counts = decode(model, prompt, sampling, n_drafts=n_drafts, seed=seed)
    return Comparison(plain, drafted, (speed, with_drafts), counts)


def decode(
    model: Transformer, prompt: list[int], sampling: Sampling, *, n_drafts: int, seed: int
) -> tuple[list[int], float, Counts]:
    """New ids, how many came a second behind the first, and what they took."""
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


def gains(found: Sequence[Comparison], name: str) -> Iterator[Row]:
    """Speed of both ways, how many drafts are accepted, and tokens a step of the main model."""
    what = f"speculation, {name}, {len(found)} prompts"
    plain, drafted = zip(*(one.speeds for one in found), strict=True)
    yield median_row(f"{what}: plain", plain, "tokens/s")
    yield median_row(f"{what}: drafts", drafted, "tokens/s")
    ratios = [b / a for a, b in zip(plain, drafted, strict=True)]
    yield median_row(f"{what}: ratio", ratios, "x", goal=">= 1.2")
    for depth in range(len(found[0].counts.drafted)):
        accepted = sum(one.counts.accepted[depth] for one in found)
        share = accepted / sum(one.counts.drafted[depth] for one in found)
        yield Row(f"{what}: acceptance, depth {depth + 1}", share, "")
    tokens = sum(one.counts.tokens for one in found)
    yield Row(f"{what}: tokens a step", tokens / sum(one.counts.steps for one in found), "")


def equality(
    model: Transformer, found: Sequence[Comparison], prompts: Sequence[list[int]], name: str
) -> Iterator[Row]:
    """How many greedy continuations are the same, and how close the choice was elsewhere."""
    pairs = zip(prompts, found, strict=True)
    gaps = [gap_where_they_part(model, p, one) for p, one in pairs if one.plain != one.drafted]
    what = f"speculation, greedy, {name}"
    yield Row(
        f"{what}: identical runs", 1 - len(gaps) / len(found), "", goal="1" * (name == "float32")
    )
    if gaps:
        yield median_row(f"{what}: gap of the two best logits where runs part", gaps, "")


@torch.inference_mode()
def gap_where_they_part(model: Transformer, prompt: list[int], one: Comparison) -> float:
    """Difference of the two best logits at the first token that differs."""
    same = next(i for i, (a, b) in enumerate(zip(one.plain, one.drafted, strict=True)) if a != b)
    logits = model(torch.tensor([[*prompt, *one.plain[:same]]])).logits[0, -1].float()
    best, second = logits.topk(2).values.tolist()
    return float(best - second)
