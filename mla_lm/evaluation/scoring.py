"""Log-likelihoods of continuations; a common prefix of texts is computed once.

Texts with a common prefix (the choices of a question, a minimal pair) become a tree in one row,
whose tokens attend to their ancestors only; rows of similar length are a batch. Tokens are those of
lm-evaluation-harness: context and continuation are encoded as one text after `end_of_text`, and the
tokens after as many as the context has alone are the continuation.

B rows, T tokens of a row, V vocabulary, N scored tokens.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from mla_lm.data.loader import Stream
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError
from mla_lm.evaluation.progress import track
from mla_lm.machine import kernels_for
from mla_lm.model import Transformer

BATCH = 2**13  # tokens per batch, padding included
PAIRS = 2**24  # elements of a batch's attention mask
LOGITS = 2**21  # logits computed at once: they fit the cache of a CPU
ROW = 64  # tokens of a tree, unless its texts are longer
OPEN = 2**31  # the end of a subtree that may still grow
SAVES = 6  # a text joins a tree that already has at least 1/SAVES of its tokens


class Request(NamedTuple):
    """Ids: the context, from `end_of_text` on, and the continuation to score."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Score(NamedTuple):
    """Of one continuation."""

    log_likelihood: float  # nats, summed over tokens
    greedy: bool  # every token is the most likely one, padding ids left out
    by_token: tuple[float, ...] = ()


def encode(
    pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer, *, max_seq_len: int
) -> list[tuple[Request, bool]]:
    """Ids of (context, continuation), and whether they were too long and lost their beginning."""
    moved = [_spaces_moved(*pair) for pair in pairs]
    contexts = tokenizer.encode_batch([context for context, _ in moved])
    wholes = tokenizer.encode_batch([context + continuation for context, continuation in moved])
    found = []
    for context, whole in zip(contexts, wholes, strict=True):
        kept = min(len(context), len(whole) - 1)  # one token at least is the continuation's
        before = (tokenizer.end_of_text, *(context if kept == len(context) else whole[:kept]))
        after = tuple(whole[kept:])[-max_seq_len:]
        room = max_seq_len + 1 - len(after)
        truncated = len(before) > room or len(after) < len(whole) - kept
        found.append((Request(before[-room:], after), truncated))
    return found


def _spaces_moved(context: str, continuation: str) -> tuple[str, str]:
    """Spaces at the end of a context belong to the token that follows."""
    stripped = context.rstrip()
    return stripped, context[len(stripped) :] + continuation


def window(
    ids: Stream, first: int, n: int, *, longest: int, separator: int | None = None
) -> Iterator[Request]:
    """Requests for the `n` tokens from `first` on, with as much context as `longest` allows.

    A context begins at the last `separator` before its continuation, if there is one.
    """
    last = min(first + n, len(ids))
    start = max(0, last - 1 - longest)
    text = ids[start:last].tolist()
    opened = [i for i, token in enumerate(text[:-1]) if token == separator]
    first_new = first - start
    cuts = [first_new, *(i + 1 for i in opened if i >= first_new), len(text)]
    for begin, end in pairwise(cuts):
        seen_from = max((i for i in opened if i < begin), default=0)
        yield Request(tuple(text[seen_from:begin]), tuple(text[begin:end]))


@torch.no_grad()
def score(model: Transformer, requests: Sequence[Request]) -> list[Score]:
    """Scores in the order of `requests`.

    Batching does not change them in float32, in bfloat16 it changes the rounding. Raises ValueError
    for a continuation without tokens, UserError for likelihoods that are not finite.
    """
    if not all(request.continuation for request in requests):
        raise ValueError("a continuation has no tokens")
    found = [Score(0.0, True)] * len(requests)
    for batch in track(list(_batches(plant(requests))), "scoring"):
        members = [i for tree in batch for i in tree.requests]
        scores = _score_trees(model, batch, [requests[i] for i in members])
        if not all(math.isfinite(one.log_likelihood) for one in scores):
            raise UserError("the model gives likelihoods that are not finite")
        for i, one in zip(members, scores, strict=True):
            found[i] = one
    return found


def score_texts(model: Transformer, texts: Sequence[Sequence[Request]]) -> list[list[Score]]:
    """`score` of the requests of each text."""
    scores = iter(score(model, [request for text in texts for request in text]))
    return [list(islice(scores, len(text))) for text in texts]


def with_stderr(name: str, values: Sequence[float]) -> dict[str, float]:
    """The mean as `name`; where there are several values, its standard error as `name_stderr`."""
    found = {name: statistics.fmean(values)}
    if len(values) > 1:
        found[f"{name}_stderr"] = statistics.stdev(values) / math.sqrt(len(values))
    return found


class Tree:
    """Texts with a common beginning in one row, one node per distinct prefix.

    Nodes are in depth-first order: the subtree of node i is i .. ends[i] - 1.
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
        self.ends += [OPEN] * (len(self.tokens) - first)
        self.requests.append(request)
        self.paths.append(self.path)

    def __len__(self) -> int:
        return len(self.tokens)


def plant(requests: Sequence[Request]) -> list[Tree]:
    """Trees of all requests: a text joins the tree before it if they share enough tokens."""
    texts = [[*request.context, *request.continuation[:-1]] for request in requests]
    trees: list[Tree] = []
    before: list[int] = []
    for i in sorted(range(len(texts)), key=texts.__getitem__):
        text = texts[i]
        differs = (k for k, (a, b) in enumerate(zip(before, text, strict=False)) if a != b)
        n_shared = next(differs, min(len(before), len(text)))
        joins = trees and n_shared * SAVES >= len(text)
        if not joins or len(trees[-1]) + len(text) - n_shared > max(ROW, 2 * len(text)):
            trees.append(Tree())
            n_shared = 0
        trees[-1].add(i, text, n_shared)
        before = text
    return trees


def _batches(trees: list[Tree]) -> Iterator[list[Tree]]:
    """Trees of like size, largest first, within `BATCH` tokens and `PAIRS` mask elements."""
    batch: list[Tree] = []
    for tree in sorted(trees, key=len, reverse=True):
        if batch and len(batch[0]) * (len(batch) + 1) > min(BATCH, PAIRS // len(batch[0])):
            yield batch
            batch = []
        batch.append(tree)
    if batch:
        yield batch


def _score_trees(model: Transformer, trees: list[Tree], requests: Sequence[Request]) -> list[Score]:
    """One forward pass over trees as rows; `requests` are theirs, in order."""
    width = len(trees[0])
    device = model.embed.weight.device

    def padded(rows: list[list[int]], filler: int) -> Tensor:
        filled = [[*row, *[filler] * (width - len(row))] for row in rows]
        return torch.tensor(filled, device=device)  # (B, T)

    tokens = padded([tree.tokens for tree in trees], 0)
    depths = padded([tree.depths for tree in trees], 0)
    seen = None
    if any(len(tree.paths) > 1 for tree in trees):  # else a token sees all that came before
        ends = padded([tree.ends for tree in trees], OPEN).unsqueeze(1)
        node = torch.arange(width, device=device)
        seen = (node <= node.unsqueeze(1)) & (node.unsqueeze(1) < ends)  # (B, T, T)
    with kernels_for(tokens.numel(), model.matmul_dtype):
        hidden = model.forward_tree(tokens, depths, seen).flatten(0, 1)  # (B * T, dim)

    paths = [(row, path) for row, tree in enumerate(trees) for path in tree.paths]
    nodes: list[int] = []
    targets: list[int] = []
    for (row, path), request in zip(paths, requests, strict=True):
        nodes += [row * width + node for node in path[len(request.context) - 1 :]]
        targets += request.continuation
    likely, best = _at_targets(
        model, hidden, torch.tensor(nodes, device=device), torch.tensor(targets, device=device)
    )
    by_token = iter(zip(likely.tolist(), best.tolist(), strict=True))
    scored = [list(islice(by_token, len(request.continuation))) for request in requests]
    columns = (tuple(zip(*one, strict=True)) for one in scored)
    return [Score(sum(nats), all(top), nats) for nats, top in columns]


def _at_targets(
    model: Transformer, hidden: Tensor, nodes: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """hidden (M, dim), nodes and targets (N,): log-likelihoods, and which are the argmax: (N,).

    A node that predicts for several texts passes the head once.
    """
    unique, place = nodes.unique(return_inverse=True)
    likely = torch.empty(len(nodes), device=hidden.device)
    best = torch.zeros(len(nodes), dtype=torch.bool, device=hidden.device)
    n_rows = max(1, LOGITS // model.cfg.vocab_size)
    for first in range(0, len(unique), n_rows):
        logits = model.lm_head(hidden[unique[first : first + n_rows]]).float()  # (n, V)
        highest = model.of_tokens(logits).amax(-1)
        here = ((place >= first) & (place < first + n_rows)).nonzero().squeeze(1)
        at, target = place[here] - first, targets[here]
        likely[here] = logits.log_softmax(-1)[at, target]
        highest_ones = (logits[at, target] == highest[at]).nonzero().squeeze(1)
        first_best = model.of_tokens(logits[at[highest_ones]]).argmax(-1)
        tied = first_best == target[highest_ones]
        best[here[highest_ones]] = tied
    return likely, best
