"""Log-likelihoods of continuations, in batches of like length; what texts share is read once.

Texts that begin alike (the choices of a question, a sentence and its minimal pair) become a tree in
one row, whose tokens see their own ancestors only. The tokens are those of lm-evaluation-harness:
context and continuation are encoded as one text, and what the context alone does not give belongs
to the continuation; before each text stands `end_of_text`.

B rows, T tokens of a row, V vocabulary, N tokens that are scored.
"""

import gc
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError
from mla_lm.evaluation.items import Pair
from mla_lm.model import Transformer

BATCH = 2**13  # tokens, padding included
PAIRS = 2**24  # of tokens that may see each other
LOGITS = 2**21  # numbers that are made at once: they stay in the cache of a CPU
ROW = 64  # tokens of a tree, unless its texts are longer
SAVES = 6  # a text joins a tree where one in so many of its tokens is there already


class Request(NamedTuple):
    """Ids: the context, from `end_of_text` on, and what is to be scored behind it."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Score(NamedTuple):
    """Of one continuation."""

    log_likelihood: float  # nats, summed over tokens
    n_tokens: int
    greedy: bool  # every token is the most likely one


class Encoded(NamedTuple):
    """Requests that fit the model, and how many had to be cut on the left."""

    requests: list[Request]
    n_truncated: int


@contextmanager
def without_collector() -> Iterator[None]:
    """Leave cycles alone: what many small tuples would make the collector look at costs a tenth."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@without_collector()
def encode(pairs: Sequence[Pair], tokenizer: Tokenizer, *, max_seq_len: int) -> Encoded:
    """Pairs to ids; a context that is too long loses its beginning."""
    moved = [_spaces_moved(pair) for pair in pairs]
    contexts = tokenizer.encode_batch([pair.context for pair in moved])
    wholes = tokenizer.encode_batch([pair.context + pair.continuation for pair in moved])
    requests, n_truncated = [], 0
    for context, whole in zip(contexts, wholes, strict=True):
        kept = min(len(context), len(whole) - 1)  # one token at least is the continuation's
        before = (tokenizer.end_of_text, *(context if kept == len(context) else whole[:kept]))
        after = tuple(whole[kept:])[-max_seq_len:]
        room = max_seq_len + 1 - len(after)
        cut = len(before) > room or len(after) < len(whole) - kept
        n_truncated += cut
        requests.append(Request(before[-room:], after))
    return Encoded(requests, n_truncated)


def _spaces_moved(pair: Pair) -> Pair:
    """Spaces at the end of a context belong to the token that follows."""
    context = pair.context.rstrip()
    return Pair(context, pair.context[len(context) :] + pair.continuation)


@torch.no_grad()
@without_collector()
def score(
    model: Transformer,
    requests: Sequence[Request],
    *,
    show: Callable[[int], object] = lambda n_requests: None,
) -> list[Score]:
    """Scores in the order of `requests`; `show` is told how many are done.

    In float32 they do not depend on the batches; in bfloat16 they do by a rounding, as everywhere.
    Raises ValueError for a continuation without tokens, UserError for a model that gives no number.
    """
    if not all(request.continuation for request in requests):
        raise ValueError("a continuation has no tokens")
    found = [Score(0.0, 0, True)] * len(requests)
    for batch in _batches(plant(requests)):
        members = [i for tree in batch for i in tree.requests]
        scores = _score_trees(model, batch, [requests[i] for i in members])
        if not all(math.isfinite(one.log_likelihood) for one in scores):
            raise UserError("the model gives likelihoods that are not finite")
        for i, one in zip(members, scores, strict=True):
            found[i] = one
        show(len(members))
    return found


class Tree:
    """Texts with a common beginning in one row: a token is one node, however many texts share it.

    Nodes stand in depth-first order, so those that follow from node i are i .. ends[i] - 1.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.depths: list[int] = []  # the position in its text
        self.ends: list[int] = []
        self.path: list[int] = []  # nodes of the text added last
        self.requests: list[int] = []
        self.paths: list[list[int]] = []  # of each request

    def add(self, request: int, text: Sequence[int], n_shared: int) -> None:
        """Add a text that has its first `n_shared` tokens in common with the last one."""
        for node in self.path[n_shared:]:
            self.ends[node] = len(self.tokens)
        first = len(self.tokens)
        self.tokens += text[n_shared:]
        self.depths += range(n_shared, len(text))
        self.path = [*self.path[:n_shared], *range(first, len(self.tokens))]
        self.ends += [-1] * (len(self.tokens) - first)
        self.requests.append(request)
        self.paths.append(self.path)

    def close(self) -> None:
        for node in self.path:
            self.ends[node] = len(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)


def plant(requests: Sequence[Request]) -> list[Tree]:
    """All requests in as few trees as pays: a text joins the one before if that saves enough."""
    texts = [[*request.context, *request.continuation[:-1]] for request in requests]
    trees: list[Tree] = []
    before: Sequence[int] = ()
    for i in sorted(range(len(texts)), key=texts.__getitem__):
        text = texts[i]
        n_shared = _n_shared(before, text)
        joins = trees and n_shared * SAVES >= len(text)
        if not joins or len(trees[-1]) + len(text) - n_shared > max(ROW, 2 * len(text)):
            trees.append(Tree())
            n_shared = 0
        trees[-1].add(i, text, n_shared)
        before = text
    for tree in trees:
        tree.close()
    return trees


def _n_shared(one: Sequence[int], other: Sequence[int]) -> int:
    n = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        n += 1
    return n


def _batches(trees: list[Tree]) -> Iterator[list[Tree]]:
    """Trees of like size together, largest first, within `BATCH` tokens and `PAIRS` of them."""
    batch: list[Tree] = []
    for tree in sorted(trees, key=len, reverse=True):
        if batch and len(batch[0]) * (len(batch) + 1) > min(BATCH, PAIRS // len(batch[0])):
            yield batch
            batch = []
        batch.append(tree)
    if batch:
        yield batch


def _score_trees(model: Transformer, trees: list[Tree], requests: Sequence[Request]) -> list[Score]:
    """One pass over rows that are trees; `requests` are theirs, in order."""
    width = len(trees[0])
    device = model.embed.weight.device

    def padded(rows: list[list[int]], filler: int) -> Tensor:
        filled = [[*row, *[filler] * (width - len(row))] for row in rows]
        return torch.tensor(filled, device=device)  # (B, T)

    tokens = padded([tree.tokens for tree in trees], 0)
    depths = padded([tree.depths for tree in trees], 0)
    seen = None
    if any(len(tree.paths) > 1 for tree in trees):  # else a token sees all that came before
        ends = padded([tree.ends for tree in trees], width).unsqueeze(1)
        node = torch.arange(width, device=device)
        seen = (node <= node.unsqueeze(1)) & (node.unsqueeze(1) < ends)  # (B, T, T)
    hidden = model.forward_tree(tokens, depths, seen).flatten(0, 1)  # (B * T, dim)

    paths = [(row, path) for row, tree in enumerate(trees) for path in tree.paths]
    nodes: list[int] = []
    targets: list[int] = []
    counts = []
    for (row, path), request in zip(paths, requests, strict=True):
        nodes += [row * width + node for node in path[len(request.context) - 1 :]]
        targets += request.continuation
        counts.append(len(request.continuation))
    likely, best = _at_targets(
        model, hidden, torch.tensor(nodes, device=device), torch.tensor(targets, device=device)
    )
    row_of = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    zeros = torch.zeros(len(counts), dtype=torch.float64)
    sums = zeros.index_add(0, row_of, likely.double().cpu()).tolist()
    missed = zeros.index_add(0, row_of, (~best).double().cpu()).tolist()
    return [Score(s, n, m == 0) for s, n, m in zip(sums, counts, missed, strict=True)]


def _at_targets(
    model: Transformer, hidden: Tensor, nodes: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """hidden (M, dim), nodes and targets (N,): log-likelihoods, and which are the best: (N,).

    A node that predicts for several texts is put through the head once.
    """
    unique, place = nodes.unique(return_inverse=True)
    likely = torch.empty(len(nodes), device=hidden.device)
    best = torch.zeros(len(nodes), dtype=torch.bool, device=hidden.device)
    n_rows = max(1, LOGITS // model.cfg.vocab_size)
    for first in range(0, len(unique), n_rows):
        logits = model.lm_head(hidden[unique[first : first + n_rows]]).float()  # (n, V)
        highest = logits.amax(-1)
        here = ((place >= first) & (place < first + n_rows)).nonzero().squeeze(1)
        at, target = place[here] - first, targets[here]
        likely[here] = logits.log_softmax(-1)[at, target]
        highest_ones = (logits[at, target] == highest[at]).nonzero().squeeze(1)
        tied = logits[at[highest_ones]].argmax(-1) == target[highest_ones]  # the first of equals
        best[here[highest_ones]] = tied
    return likely, best


def grouped(scores: Iterable[Score], sizes: Sequence[int]) -> Iterator[list[Score]]:
    """The scores of each item, in a row."""
    left = iter(scores)
    for size in sizes:
        yield [next(left) for _ in range(size)]
