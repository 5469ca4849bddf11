"""How far back a model retrieves: a pass key hidden in text, and the partners of tokens.

Pass key (arXiv 2305.16300): a text states a number at some depth and asks for it at the end; the
likelihoods of ten numbers are compared. Recall (multi-query associative recall, arXiv 2312.04927):
pairs of tokens, then the first token of each pair in another order, each to be followed by its
partner. A model of the synthetic corpus knows no text and gets the recall of that corpus only.
"""

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from mla_lm.config import EvalConfig, ModelConfig, PlainRopeConfig, YarnConfig
from mla_lm.data.corpora.synthetic import FILLER, OPENING, TASKS
from mla_lm.data.loader import Stream
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError
from mla_lm.evaluation.figures import draw_passkeys
from mla_lm.evaluation.scoring import Request, score_texts, with_stderr
from mla_lm.evaluation.subject import Subject
from mla_lm.model import Transformer

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # share of the text before the key
PARTS = (8, 4, 2, 1)  # lengths: the maximum length divided by these
N_KEYS = 10
N_TEXTS = 20  # per length and depth; per length for recall
STATED = " The pass key is {key}. Remember it: {key} is the pass key."
ASKED = " What is the pass key? The pass key is"


def long_context(subject: Subject, cfg: EvalConfig) -> Iterator[dict[str, Any]]:
    """Pass key and recall by length, then drawn; with YaRN also without it (`without_yarn/...`)."""
    model, tokenizer, data = subject.model, subject.tokenizer, subject.data()
    n_texts = min(cfg.limit or N_TEXTS, N_TEXTS)
    synthetic = subject.run.data.kind == "synthetic"
    trials = []
    if not synthetic:
        trials = passkey_trials(model.cfg, tokenizer, data.val, seed=cfg.seed, n_texts=n_texts)
    plain = without_yarn(model)
    models = {"": model} if plain is None else {"": model, "without_yarn/": plain}
    metrics: dict[str, Any] = {}
    for prefix, asked in models.items():
        found = passkey(asked, trials) if trials else {}
        found |= recall(asked, tokenizer, synthetic=synthetic, seed=cfg.seed, n_texts=n_texts)
        metrics |= {prefix + name: value for name, value in found.items()}
    if not metrics:
        raise UserError(f"parts=long_context: {model.cfg.max_seq_len} tokens hold no question")
    yield metrics | {"val/sha256": data.val_sha256}
    if trials:
        titles = ("",) if plain is None else ("YaRN", "without YaRN")
        by_depth = [metrics[f"{prefix}passkey/by_depth"] for prefix in models]
        picture = subject.folder / f"passkey-{model.cfg.max_seq_len}.png"
        draw_passkeys(picture, dict(zip(titles, by_depth, strict=True)), DEPTHS)
        print(f"pass keys found by length and depth: {picture}")


class Trial(NamedTuple):
    """A question: one request per answer, and the index of the right one."""

    length: int
    depth: float
    requests: list[Request]
    gold: int


def lengths(cfg: ModelConfig) -> list[int]:
    """Lengths of the texts in tokens, up to the model's maximum."""
    return sorted({max(1, cfg.max_seq_len // part) for part in PARTS})


def passkey_trials(
    cfg: ModelConfig, tokenizer: Tokenizer, ids: Stream, *, seed: int, n_texts: int
) -> list[Trial]:
    """`n_texts` per depth and length, each key hidden in a part of `ids`; without short lengths."""
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
    """None where the length has no room for text around the question."""
    keys = rng.sample(range(10_000, 100_000), N_KEYS)
    gold = rng.randrange(N_KEYS)
    stated, asked = tokenizer.encode_batch([STATED.format(key=keys[gold]), ASKED])
    answers = tokenizer.encode_batch([f" {key}" for key in keys])
    room = length - len(stated) - len(asked) - max(map(len, answers))
    if room < len(DEPTHS):
        return None
    first = int(rng.random() * max(1, len(ids) - room))
    part = ids[first : first + room]
    text = np.resize(part[part != tokenizer.end_of_text], room).tolist()  # repeats a short one
    at = round(depth * room)
    context = (tokenizer.end_of_text, *text[:at], *stated, *text[at:], *asked)
    return Trial(length, depth, [Request(context, tuple(answer)) for answer in answers], gold)


def passkey(model: Transformer, trials: list[Trial]) -> dict[str, Any]:
    """Accuracy: `passkey/LENGTH` (chance 0.1), `passkey/LENGTH/greedy` by greedy decoding.

    `passkey/by_depth` has a list over `DEPTHS` for each length.
    """
    scores = score_texts(model, [trial.requests for trial in trials])
    metrics: dict[str, Any] = {}
    by_depth: dict[int, list[float]] = {}
    for length in dict.fromkeys(trial.length for trial in trials):
        asked = [pair for pair in zip(trials, scores, strict=True) if pair[0].length == length]
        best = [np.argmax([one.log_likelihood for one in found]) for _, found in asked]
        right = [int(i) == trial.gold for i, (trial, _) in zip(best, asked, strict=True)]
        metrics |= with_stderr(f"passkey/{length}", right)
        greedy = [found[trial.gold].greedy for trial, found in asked]
        metrics[f"passkey/{length}/greedy"] = float(np.mean(greedy))
        by_depth[length] = np.reshape(right, (len(DEPTHS), -1)).mean(1).tolist()
    return metrics | {"passkey/by_depth": by_depth}


def recall(
    model: Transformer, tokenizer: Tokenizer, *, synthetic: bool, seed: int, n_texts: int
) -> dict[str, float]:
    """`recall/LENGTH`: share of partners that are the most likely next token.

    The standard error is that of the mean over texts. Lengths that the vocabulary cannot fill are
    left out.
    """
    metrics: dict[str, float] = {}
    text_of = _synthetic_text if synthetic else _pairs_of_tokens
    for length in lengths(model.cfg):
        rng = random.Random(f"recall {length} {seed}")
        texts = [list(text_of(tokenizer, rng, length)) for _ in range(n_texts)]
        if all(texts):
            found = [[one.greedy for one in text] for text in score_texts(model, texts)]
            metrics |= with_stderr(f"recall/{length}", [sum(f) / len(f) for f in found])
    return metrics


def _pairs_of_tokens(tokenizer: Tokenizer, rng: random.Random, length: int) -> Iterator[Request]:
    """Requests of one text; each token is in one pair only."""
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
    """Requests of one text; only the first query of a key, later ones would have it close by."""
    text = TASKS["recall"](rng, length - 1).rjust(length - 1, FILLER)
    ids = [tokenizer.end_of_text, *tokenizer.encode(text)]
    (opening,) = tokenizer.encode(OPENING)
    asked: set[int] = set()
    for i, token in enumerate(ids[:-1]):
        if token == opening and ids[i - 1] not in asked:
            asked.add(ids[i - 1])
            yield Request(tuple(ids[: i + 1]), (ids[i + 1],))


def without_yarn(model: Transformer) -> Transformer | None:
    """The same weights with plain RoPE; None where YaRN changes nothing."""
    cfg = model.cfg
    if not isinstance(cfg.rope, YarnConfig) or cfg.rope.factor == 1:
        return None
    plain = PlainRopeConfig(kind="plain", theta=cfg.rope.theta)
    other = Transformer(cfg.model_copy(update={"rope": plain}))
    other.load_state_dict(model.state_dict())
    other.n_tokens = model.n_tokens
    return other.to(model.embed.weight.device).eval()
