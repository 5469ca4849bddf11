"""Generated tasks that separate attention kinds at tiny scale: every answer can be checked.

A document is `length` bytes: symbols to remember, then questions with their answers between
`OPENING` and `CLOSING`. Recall: pairs of key and value, then `key=value;` in another order
(multi-query associative recall, arXiv 2312.04927). Induction: the same with triggers hidden in
noise (arXiv 2209.11895). Copying: `text=text;`.
"""

import random
import string
from collections.abc import Callable, Iterator

from mla_lm.config import SyntheticConfig
from mla_lm.data.corpora.document import Document

OPENING, CLOSING, FILLER = "=", ";", "."
LETTERS = string.ascii_letters
QUESTION = 4  # bytes of "k=v;"


def synthetic_documents(cfg: SyntheticConfig) -> Iterator[Document]:
    """`cfg.n_documents` documents, each with its end-of-text token `cfg.seq_len` bytes long."""
    rng = random.Random(f"{cfg.task} {cfg.data_seed}")
    length = cfg.seq_len - 1
    for _ in range(cfg.n_documents):
        text = TASKS[cfg.task](rng, length).rjust(length, FILLER)
        yield Document(text.encode(), [text])


def _recall(rng: random.Random, length: int) -> str:
    n_pairs = min(len(LETTERS), length // (2 + QUESTION))
    pairs = [(key, rng.choice(LETTERS)) for key in rng.sample(LETTERS, n_pairs)]
    context = "".join(key + value for key, value in pairs)
    return context + _questions(rng, pairs, length - len(context))


def _induction(rng: random.Random, length: int) -> str:
    n_triggers = min(len(string.digits), length // (3 * QUESTION))
    noise = [rng.choice(LETTERS) for _ in range(length - n_triggers * (QUESTION + 1))]
    places = sorted(rng.sample(range(len(noise)), n_triggers))
    pairs = [
        (t, noise[at]) for t, at in zip(rng.sample(string.digits, n_triggers), places, strict=True)
    ]
    for (trigger, follower), at in zip(pairs, places, strict=True):
        noise[at] = trigger + follower
    return "".join(noise) + _questions(rng, pairs, n_triggers * QUESTION)


def _copying(rng: random.Random, length: int) -> str:
    text = "".join(rng.choice(LETTERS) for _ in range((length - 2) // 2))
    return text + OPENING + text + CLOSING


def _questions(rng: random.Random, pairs: list[tuple[str, str]], room: int) -> str:
    """As many questions as there is room for, every pair asked before one is asked again."""
    asked: list[tuple[str, str]] = []
    while len(asked) * QUESTION < room:
        asked += rng.sample(pairs, len(pairs))
    asked = asked[: room // QUESTION]
    return "".join(f"{key}{OPENING}{value}{CLOSING}" for key, value in asked)


TASKS: dict[str, Callable[[random.Random, int], str]] = {
    "recall": _recall,
    "copying": _copying,
    "induction": _induction,
}
