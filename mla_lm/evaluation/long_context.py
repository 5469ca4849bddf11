"""How far back a model finds things: a pass key hidden in text, and the partners of tokens.

Pass key (arXiv 2305.16300): a number is told at some depth of a text of some length and asked for
at its end; ten numbers are compared by likelihood. Recall (multi-query associative recall, arXiv
2312.04927): pairs of tokens, then the first of each in another order, with its partner to be said.
A model of the synthetic corpus, which knows no text, is asked its own questions only.
"""

import math
import random
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mla_lm.config import ModelConfig, PlainRopeConfig, YarnConfig
from mla_lm.data.corpora.synthetic import FILLER, OPENING, TASKS
from mla_lm.data.loader import Stream
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.evaluation.scoring import Request, grouped, score
from mla_lm.evaluation.tasks import share
from mla_lm.model import Transformer

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # share of the text that stands in front of the key
PARTS = (8, 4, 2, 1)  # lengths: these parts of what the model reads
N_KEYS = 10
N_TEXTS = 20  # of each length and depth; of each length for recall
TOLD = " The pass key is {key}. Remember it: {key} is the pass key."
ASKED = " What is the pass key? The pass key is"

Show = Callable[[int], object]


class Trial(NamedTuple):
    """A question, its answers and the number of the right one."""

    length: int
    depth: float
    requests: list[Request]
    gold: int


def lengths(cfg: ModelConfig) -> list[int]:
    """Tokens of the texts, up to all that the model reads."""
    return sorted({max(1, cfg.max_seq_len // part) for part in PARTS})


def passkey_trials(
    cfg: ModelConfig, tokenizer: Tokenizer, ids: Stream, *, seed: int, n_texts: int
) -> list[Trial]:
    """`n_texts` for each depth of each length that holds a question, hidden in stretches of ids."""
    found = []
    for length in lengths(cfg):
        rng = random.Random(f"passkey {length} {seed}")
        depths = [depth for depth in DEPTHS for _ in range(n_texts)]
        trials = [_trial(length, depth, tokenizer, ids, rng) for depth in depths]
        found += [trial for trial in trials if trial is not None and None not in trials]
    return found


def _trial(
    length: int, depth: float, tokenizer: Tokenizer, ids: Stream, rng: random.Random
) -> Trial | None:
    """None where the length has no room for some text around the question."""
    keys = rng.sample(range(10_000, 100_000), N_KEYS)
    gold = rng.randrange(N_KEYS)
    told, asked = tokenizer.encode_batch([TOLD.format(key=keys[gold]), ASKED])
    answers = tokenizer.encode_batch([f" {key}" for key in keys])
    room = length - len(told) - len(asked) - max(map(len, answers))
    if room < len(DEPTHS):
        return None
    text = _stretch(ids, rng.random(), room, without=tokenizer.end_of_text)
    at = round(depth * room)
    context = (tokenizer.end_of_text, *text[:at], *told, *text[at:], *asked)
    return Trial(length, depth, [Request(context, tuple(answer)) for answer in answers], gold)


def _stretch(ids: Stream, place: float, length: int, *, without: int) -> list[int]:
    """So many ids from somewhere in a stream; a stream that is too short is repeated."""
    first = int(place * max(1, len(ids) - length))
    part = ids[first : first + length]
    kept: list[int] = np.resize(part[part != without], length).tolist()
    return kept


def passkey(model: Transformer, trials: list[Trial], *, show: Show) -> dict[str, Any]:
    """Shares of right keys: `passkey/LENGTH` (chance 0.1) and `passkey/LENGTH/greedy`.

    `passkey/by_depth` is for each length a list over `DEPTHS`.
    """
    asked = [request for trial in trials for request in trial.requests]
    answers = grouped(score(model, asked, show=show), [len(t.requests) for t in trials])
    right: dict[int, dict[float, list[bool]]] = {}
    greedy: dict[int, list[bool]] = {}
    for trial, scores in zip(trials, answers, strict=True):
        likely = [one.log_likelihood for one in scores]
        depths = right.setdefault(trial.length, {})
        depths.setdefault(trial.depth, []).append(likely.index(max(likely)) == trial.gold)
        greedy.setdefault(trial.length, []).append(scores[trial.gold].greedy)
    metrics: dict[str, Any] = {}
    for length, depths in right.items():
        metrics |= share(f"passkey/{length}", [one for found in depths.values() for one in found])
        metrics[f"passkey/{length}/greedy"] = sum(greedy[length]) / len(greedy[length])
    by_depth = {n: [sum(f) / len(f) for f in depths.values()] for n, depths in right.items()}
    return metrics | {"passkey/by_depth": by_depth}


def recall(
    model: Transformer,
    tokenizer: Tokenizer,
    *,
    synthetic: bool,
    seed: int,
    n_texts: int,
    show: Show,
) -> dict[str, float]:
    """`recall/LENGTH`: share of partners that are the most likely token of all.

    The standard error is that of the mean over texts. Lengths that the vocabulary cannot fill are
    left out.
    """
    metrics: dict[str, float] = {}
    text_of = _synthetic_text if synthetic else _pairs_of_tokens
    for length in lengths(model.cfg):
        rng = random.Random(f"recall {length} {seed}")
        texts = [list(text_of(tokenizer, rng, length)) for _ in range(n_texts)]
        if all(texts):
            scores = score(model, [request for asked in texts for request in asked])
            of_texts = grouped(scores, list(map(len, texts)))
            shares = [sum(one.greedy for one in found) / len(found) for found in of_texts]
            metrics[f"recall/{length}"] = statistics.mean(shares)
            if n_texts > 1:
                error = statistics.stdev(shares) / math.sqrt(n_texts)
                metrics[f"recall/{length}_stderr"] = error
        show(1)
    return metrics


def _pairs_of_tokens(tokenizer: Tokenizer, rng: random.Random, length: int) -> Iterator[Request]:
    """Each token stands in one pair only."""
    tokens = np.flatnonzero(tokenizer.byte_lengths).tolist()
    n_pairs = (length - 1) // 4
    if 2 * n_pairs > len(tokens):
        return
    chosen = rng.sample(tokens, 2 * n_pairs)
    text = [tokenizer.end_of_text, *chosen]
    pairs = list(zip(chosen[::2], chosen[1::2], strict=True))
    for first, second in rng.sample(pairs, n_pairs):
        text.append(first)
        yield Request(tuple(text), (second,))
        text.append(second)


def _synthetic_text(tokenizer: Tokenizer, rng: random.Random, length: int) -> Iterator[Request]:
    """Each key is asked for once: later its answer would stand close by."""
    text = TASKS["recall"](rng, length - 1).rjust(length - 1, FILLER)
    ids = [tokenizer.end_of_text, *tokenizer.encode(text)]
    (opening,) = tokenizer.encode(OPENING)
    asked: set[int] = set()
    for i, token in enumerate(ids[:-1]):
        if token == opening and ids[i - 1] not in asked:
            asked.add(ids[i - 1])
            yield Request(tuple(ids[: i + 1]), (ids[i + 1],))


def without_yarn(model: Transformer) -> Transformer | None:
    """The same weights with positions as they are; None where YaRN changes nothing."""
    cfg = model.cfg
    if not isinstance(cfg.rope, YarnConfig) or cfg.rope.factor == 1:
        return None
    plain = PlainRopeConfig(kind="plain", theta=cfg.rope.theta)
    other = Transformer(cfg.model_copy(update={"rope": plain}))
    other.load_state_dict(model.state_dict())
    return other.to(model.embed.weight.device).eval()


def draw_passkeys(path: Path, found: dict[str, dict[int, list[float]]]) -> None:
    """A panel for each way of positions: depth down, length across."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 2.6 * len(found), 3), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for panel, (title, by_depth) in zip(panels, found.items(), strict=True):
        cells = np.array(list(by_depth.values())).T  # (depths, lengths)
        image = panel.imshow(cells, vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(cells):
            colour = "black" if value > 0.6 else "white"
            panel.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
        panel.set(title=title, xlabel="tokens", xticks=range(len(by_depth)))
        panel.set(xticklabels=by_depth, yticks=range(len(DEPTHS)))
    panels[0].set(ylabel="text before the key", yticklabels=[f"{d:.0%}" for d in DEPTHS])
    figure.colorbar(image, ax=panels, label=f"right keys (chance {1 / N_KEYS})")
    figure.savefig(path, dpi=110)
