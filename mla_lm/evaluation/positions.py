"""Loss by position in the context, and with a sliding context.

T positions of a row; the first predicted token is at position 1.
"""

import math
from collections.abc import Iterator
from itertools import count, pairwise, takewhile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mla_lm.data.batch import IGNORED
from mla_lm.data.loader import Stream
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.evaluation.progress import track
from mla_lm.evaluation.scoring import Request, score
from mla_lm.model import Transformer

AT_ONCE = 1024  # strides whose requests are held in memory

Range = tuple[int, int, float]  # first and last position, nats per token


def position_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Nats and counted tokens at each position: logits (B, T, V), labels (B, T) -> (T, 2)."""
    flat = logits.float().flatten(0, 1)
    nats = F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="none")
    counted = labels != IGNORED
    return torch.stack((nats.view_as(labels).double().sum(0), counted.double().sum(0)), dim=1)


def by_position(sums: Tensor) -> list[Range]:
    """Mean loss at positions 1, 2, 3 to 4, 5 to 8, ... of `position_sums`."""
    edges = [0, *takewhile(lambda edge: edge < len(sums), (2**k for k in count())), len(sums)]
    found = []
    for first, last in pairwise(edges):
        nats, tokens = sums[first:last].sum(0).tolist()
        if tokens:
            found.append((first + 1, last, nats / tokens))
    return found


def draw_by_position(path: Path, ranges: list[Range]) -> None:
    """Loss over position, on a logarithmic axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([last for _, last, _ in ranges], [loss for *_, loss in ranges], marker="o")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="position in the context, up to", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def sliding_loss(
    model: Transformer,
    ids: Stream,
    tokenizer: Tokenizer,
    *,
    stride: int,
    separator: int | None = None,
) -> dict[str, float]:
    """Loss, perplexity and bits per byte of a stream, `stride` tokens at a time.

    Each token has a context of at least `max_seq_len - stride` tokens, except at the beginning and
    behind a `separator`, where one is given.
    """
    nats = n_tokens = n_bytes = 0.0
    longest = model.cfg.max_seq_len
    firsts = range(1, len(ids), min(stride, longest))
    for i in track(range(0, len(firsts), AT_ONCE), "sliding context"):
        requests = [
            request
            for first in firsts[i : i + AT_ONCE]
            for request in window(ids, first, firsts.step, longest=longest, separator=separator)
        ]
        nats -= sum(one.log_likelihood for one in score(model, requests))
        n_tokens += sum(len(request.continuation) for request in requests)
        n_bytes += sum(tokenizer.n_bytes(request.continuation) for request in requests)
    loss = nats / n_tokens
    return {
        "sliding/stride": stride,
        "sliding/loss": loss,
        "sliding/perplexity": math.exp(min(loss, 700.0)),
        "sliding/bpb": nats / math.log(2) / n_bytes,
    }


def window(
    ids: Stream, first: int, n: int, *, longest: int, separator: int | None = None
) -> Iterator[Request]:
    """The `n` tokens from `first` on, behind as many as fit a model that reads `longest`."""
    last = min(first + n, len(ids))
    start = max(0, last - 1 - longest)
    text = ids[start:last].tolist()
    opened = [i for i, token in enumerate(text[:-1]) if token == separator]
    first_new = first - start
    cuts = [first_new, *(i + 1 for i in opened if i >= first_new), len(text)]
    for begin, end in pairwise(cuts):
        seen_from = max((i for i in opened if i < begin), default=0)
        yield Request(tuple(text[seen_from:begin]), tuple(text[begin:end]))
