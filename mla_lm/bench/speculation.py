"""Suite `decode`, with a trained checkpoint: drafts of its MTP modules against plain decoding.

Prompts are beginnings of rows of the validation split. Greedy continuations must be the same with
and without drafts; where bfloat16 lets them differ, the gap of the two best logits is reported.
"""

import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from mla_lm.bench.report import Row, median_row, timed
from mla_lm.checkpoint import load_checkpoint, locate, require_corpus
from mla_lm.data import EvalLoader, prepare
from mla_lm.generation import Counts, Decoder, Sampling
from mla_lm.model import Transformer

N_PROMPTS, PROMPT, NEW_TOKENS = 200, 32, 64


class Comparison(NamedTuple):
    """One prompt, decoded plainly and with drafts."""

    plain: list[int]
    drafted: list[int]
    seconds: tuple[float, float]
    counts: Counts


def run(ckpt: str) -> list[Row]:
    """Speed, acceptance and equality over the prompts, greedy and at temperature 1."""
    path = locate(ckpt)
    model, run_cfg, _ = load_checkpoint(path)
    corpus = prepare(run_cfg.data)
    require_corpus(path, corpus.manifest)
    loader = EvalLoader(corpus.val, seq_len=PROMPT + NEW_TOKENS, batch_size=1)
    stride = max(1, loader.n_windows // N_PROMPTS)
    rows = [row[0, :PROMPT].tolist() for row in loader if row.shape[1] > PROMPT]
    prompts = rows[::stride][:N_PROMPTS]
    return [
        *figures(model, prompts, Sampling(temperature=0), "greedy"),
        *figures(model, prompts, Sampling(temperature=1), "temperature 1"),
        *in_bfloat16(model.bfloat16(), prompts),
    ]


def figures(
    model: Transformer, prompts: Sequence[list[int]], sampling: Sampling, name: str
) -> Iterator[Row]:
    """Rows of one way to sample, with as many drafts as the model has MTP modules."""
    found = [compare(model, prompt, sampling, seed=seed) for seed, prompt in enumerate(prompts)]
    if sampling.temperature == 0:
        assert all(one.plain == one.drafted for one in found), "drafts changed greedy decoding"
    speeds = [len(one.plain) / one.seconds[0] for one in found]
    drafted = [len(one.drafted) / one.seconds[1] for one in found]
    what = f"speculation, {name}, {len(prompts)} prompts"
    yield median_row(f"{what}: plain", speeds, "tokens/s")
    yield median_row(f"{what}: drafts", drafted, "tokens/s")
    ratios = [b / a for a, b in zip(speeds, drafted, strict=True)]
    yield median_row(f"{what}: ratio", ratios, "x", goal=">= 1.2")
    proposed = sum(one.counts.drafted for one in found)
    for depth in range(model.cfg.mtp_depth):
        accepted = sum(one.counts.accepted[depth] for one in found)
        yield Row(f"{what}: acceptance, depth {depth + 1}", accepted / proposed, "")
    per_step = statistics.mean(one.counts.tokens_per_step for one in found)
    yield Row(f"{what}: tokens a step", per_step, "")


def compare(model: Transformer, prompt: list[int], sampling: Sampling, *, seed: int) -> Comparison:
    """Both ways behind one prompt, one after the other; the prompt's own pass is not timed."""
    ids: list[list[int]] = []
    seconds = []
    counts = Counts(0, 0, ())
    for n_drafts in (0, model.cfg.mtp_depth):
        decoder = Decoder(
            model,
            [prompt],
            max_new_tokens=NEW_TOKENS,
            sampling=sampling,
            n_drafts=n_drafts,
            seed=seed,
        )
        steps = iter(decoder)
        first = next(steps)[0]
        rest: list[dict[int, list[int]]] = []
        seconds.append(timed(lambda: rest.extend(steps)))  # noqa: B023
        ids.append([*first, *(token for new in rest for token in new[0])])
        counts = decoder.counts
    return Comparison(ids[0], ids[1], (seconds[0], seconds[1]), counts)


def in_bfloat16(model: Transformer, prompts: Sequence[list[int]]) -> Iterator[Row]:
    """How many greedy continuations stay the same, and how close the choice was elsewhere."""
    greedy = Sampling(temperature=0)
    found = [compare(model, prompt, greedy, seed=0) for prompt in prompts]
    pairs = [(prompt, one) for prompt, one in zip(prompts, found, strict=True)]
    differing = [(prompt, one) for prompt, one in pairs if one.plain != one.drafted]
    same = 1 - len(differing) / len(pairs)
    yield Row("speculation, greedy in bfloat16: identical runs", same, "")
    if differing:
        gaps = [gap_where_they_part(model, prompt, one) for prompt, one in differing]
        yield median_row("bfloat16: gap of the two best logits where runs part", gaps, "")


@torch.inference_mode()
def gap_where_they_part(model: Transformer, prompt: list[int], one: Comparison) -> float:
    """Difference of the two best logits at the first token that differs."""
    same = next(i for i, (a, b) in enumerate(zip(one.plain, one.drafted, strict=True)) if a != b)
    logits = model(torch.tensor([[*prompt, *one.plain[:same]]])).logits[0, -1].float()
    best, second = logits.topk(2).values.tolist()
    return float(best - second)
