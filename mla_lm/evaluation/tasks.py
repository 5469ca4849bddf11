"""Task accuracies from likelihoods, with standard errors and what guessing would give."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mla_lm.data.tokenizer import Tokenizer
from mla_lm.evaluation.items import Continuation, Item, MinimalPair, MultipleChoice, all_pairs
from mla_lm.evaluation.scoring import Score, encode, grouped, score
from mla_lm.model import Transformer


class Graded(NamedTuple):
    """One item: right or not, by likelihood and by likelihood a character."""

    right: bool
    right_by_length: bool
    guessing: float  # probability of being right by chance
    nats: float  # of the right continuation
    n_tokens: int


def evaluate_task(
    model: Transformer,
    tokenizer: Tokenizer,
    items: Sequence[Item],
    *,
    delimiter: str,
    show: Callable[[int], object] = lambda n_requests: None,
) -> dict[str, float]:
    """Metrics by name: `accuracy` with `accuracy_stderr` and `chance`, and what the shape adds.

    Multiple choice adds `accuracy_norm` (likelihood divided by characters), continuations
    `perplexity` (of the continuation's tokens), minimal pairs an accuracy for each paradigm.
    `n_truncated` counts texts that were longer than the context.
    """
    pairs, sizes = all_pairs(items, delimiter)
    requests, n_truncated = encode(pairs, tokenizer, max_seq_len=model.cfg.max_seq_len)
    scores = list(grouped(score(model, requests, show=show), sizes))
    graded = [_grade(item, of_item) for item, of_item in zip(items, scores, strict=True)]
    metrics = share("accuracy", [one.right for one in graded])
    metrics["chance"] = sum(one.guessing for one in graded) / len(graded)
    if isinstance(items[0], MultipleChoice):
        metrics |= share("accuracy_norm", [one.right_by_length for one in graded])
    if isinstance(items[0], Continuation):
        nats, n_tokens = sum(one.nats for one in graded), sum(one.n_tokens for one in graded)
        metrics["perplexity"] = math.exp(min(700.0, nats / max(1, n_tokens)))
    if isinstance(items[0], MinimalPair):
        metrics |= _by_paradigm(items, graded)
    return metrics | {"n_items": len(items), "n_truncated": n_truncated}


def _grade(item: Item, scores: Sequence[Score]) -> Graded:
    gold = item.gold_answer
    if gold is None:
        (only,) = scores
        return Graded(only.greedy, only.greedy, 0.0, -only.log_likelihood, only.n_tokens)
    likely = [one.log_likelihood for one in scores]
    lengths = [len(pair.continuation) for pair in item.pairs("")]
    by_length = [value / length for value, length in zip(likely, lengths, strict=True)]
    return Graded(
        likely.index(max(likely)) == gold,
        by_length.index(max(by_length)) == gold,
        1 / len(scores),
        -likely[gold],
        scores[gold].n_tokens,
    )


def share(name: str, right: Sequence[bool]) -> dict[str, float]:
    """`name`, the share that is right, and `name_stderr`, the standard error of it."""
    n = len(right)
    found = sum(right) / n
    return {name: found, f"{name}_stderr": math.sqrt(found * (1 - found) / max(1, n - 1))}


def _by_paradigm(items: Sequence[Item], graded: Sequence[Graded]) -> dict[str, float]:
    found: dict[str, list[bool]] = {}
    for item, one in zip(items, graded, strict=True):
        assert isinstance(item, MinimalPair)
        found.setdefault(item.paradigm, []).append(one.right)
    return {f"accuracy/{name}": sum(r) / len(r) for name, r in sorted(found.items()) if name}
