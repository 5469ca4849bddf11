"""Loss by the position in the context, and with a context that slides along.

T positions of a row, the first predicted token being at position 1.
"""

import math
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mla_lm.data.batch import IGNORED
from mla_lm.data.loader import Stream
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.evaluation.scoring import Request, score
from mla_lm.model import Transformer

AT_ONCE = 1024  # requests


def position_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Nats and tokens that count at each position: logits (B, T, V), labels (B, T) -> (T, 2)."""
    flat = logits.float().flatten(0, 1)
    nats = F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="none")
    counted = labels != IGNORED
    return torch.stack((nats.view_as(labels).double().sum(0), counted.double().sum(0)), dim=1)


def by_position(sums: Tensor) -> list[tuple[int, int, float]]:
    """Mean loss at positions 1, 2, 3 to 4, 5 to 8, ...: (first, last, nats a token)."""
    found, first = [], 1
    while first <= len(sums):
        last = min(len(sums), max(1, 2 * (first - 1)))
        nats, tokens = sums[first - 1 : last].sum(0).tolist()
        if tokens:
            found.append((first, last, nats / tokens))
        first = last + 1
    return found


def draw_by_position(path: Path, ranges: list[tuple[int, int, float]]) -> None:
    """Loss over the position, which doubles from tick to tick."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([last for _, last, _ in ranges], [loss for *_, loss in ranges], marker="o")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="tokens of context, at most", ylabel="loss (nats a token)")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def sliding_loss(
    model: Transformer,
    ids: Stream,
    tokenizer: Tokenizer,
    *,
    stride: int,
    separator: int | None = None,
    show: Callable[[int], object] = lambda n_tokens: None,
) -> dict[str, float]:
    """Loss, perplexity and bits per byte of a stream read `stride` tokens at a time.

    Behind the beginning each of them has a context of at least `max_seq_len - stride` tokens, but
    none that lies before the last `separator`, where one is given.
    """
    nats = n_tokens = n_bytes = 0.0
    longest = model.cfg.max_seq_len
    requests = windows(ids, longest=longest, stride=min(stride, longest), separator=separator)
    while part := list(islice(requests, AT_ONCE)):
        scores = score(model, part)
        nats -= sum(one.log_likelihood for one in scores)
        n_tokens += sum(one.n_tokens for one in scores)
        show(sum(one.n_tokens for one in scores))
        n_bytes += sum(tokenizer.n_bytes(request.continuation) for request in part)
    loss = nats / n_tokens
    return {
        "sliding/stride": stride,
        "sliding/loss": loss,
        "sliding/perplexity": math.exp(min(loss, 700.0)),
        "sliding/bpb": nats / math.log(2) / n_bytes,
    }


def windows(
    ids: Stream, *, longest: int, stride: int, separator: int | None = None
) -> Iterator[Request]:
    """Every token but the first once, behind as many as fit a model that reads `longest`."""
    for first in range(1, len(ids), stride):
        last = min(first + stride, len(ids))
        start = max(0, last - 1 - longest)
        text = ids[start:last].tolist()
        opened = [i for i, token in enumerate(text[:-1]) if token == separator]
        first_new = first - start
        cuts = [first_new, *(i + 1 for i in opened if i >= first_new), len(text)]
        for begin, end in pairwise(cuts):
            seen_from = max((i for i in opened if i < begin), default=0)
            yield Request(tuple(text[seen_from:begin]), tuple(text[begin:end]))
