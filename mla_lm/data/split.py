"""The head of a corpus decides what holds for all of it: the split and the tokenizer.

A document is held out when the hash of its key is below a threshold, so that neither its place nor
the other documents matter. The smallest hash of the head is always held out: a small corpus has a
validation split too. The tokenizer learns from the training documents of the head.
"""

import hashlib
import re
from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

from mla_lm.config import DataConfig
from mla_lm.data.corpora import Corpus
from mla_lm.data.tokenizer import Tokenizer, pieces
from mla_lm.errors import UserError

HEAD = 50_000_000  # characters of training text
NOVEL = 3_000_000  # characters of different words: a trainer holds about 300 bytes for each
WORD = re.compile(r"\w+")


class Head(NamedTuple):
    """Documents below `threshold` are held out; `tokenizer` has seen none of them."""

    threshold: int
    tokenizer: Tokenizer


def place(key: bytes) -> int:
    """Where a document stands, uniform in 0 .. 2^64."""
    return int.from_bytes(hashlib.sha256(key).digest()[:8])


def read_head(cfg: DataConfig, corpus: Corpus, *, tokenizer: Tokenizer | None = None) -> Head:
    """Read as much as is needed; raises UserError when there is too little for two splits.

    `tokenizer` is the one to use, where there is one already.
    """
    given = corpus.val is not None
    learns = cfg.tokenizer.kind == "bpe"
    threshold = 0 if given else int(cfg.val_fraction * 2**64)
    kept: list[tuple[int, list[str]]] = []
    n_documents = n_held_out = size = novel = 0
    words: set[str] = set()
    lowest = 2**64
    for document in corpus.train():
        at = place(document.key)
        text = _start(document.parts, HEAD if learns and at >= threshold else 1)
        if not text:
            continue
        n_documents, n_held_out = n_documents + 1, n_held_out + (at < threshold)
        lowest = min(lowest, at)
        if at >= threshold:
            kept.append((at, text))
            size += sum(map(len, text))
            novel += _learn_words(words, text) if learns else 0
        settled, full = given or n_held_out > 0, size >= HEAD or novel >= NOVEL
        if n_documents >= 2 and kept and (full or (settled and not learns)):
            break
    if n_documents < 2 - given:
        raise UserError(
            f"{corpus.name}: {n_documents} document(s), too little text to train and validate"
        )
    if not given and not n_held_out:
        threshold = lowest + 1
    texts = [text for at, text in kept if at >= threshold]
    if not texts and not n_held_out:
        raise UserError(f"{corpus.name}: {n_documents} documents, all the same")
    if not texts:
        raise UserError(f"data.val_fraction={cfg.val_fraction}: leaves no document to train on")
    return Head(threshold, tokenizer or _made(cfg, texts))


def _start(parts: Iterable[str], n_characters: int) -> list[str]:
    """The parts of a document up to a number of characters."""
    start, size = [], 0
    for part in filter(None, parts):
        start.append(part)
        size += len(part)
        if size >= n_characters:
            break
    return start


def _learn_words(words: set[str], text: list[str]) -> int:
    """Add the words of a text; the characters of those that are new."""
    new = set().union(*map(WORD.findall, text)) - words
    words |= new
    return sum(map(len, new))


def _made(cfg: DataConfig, texts: list[list[str]]) -> Tokenizer:
    options = cfg.tokenizer
    if options.kind == "pretrained":
        return Tokenizer.pretrained(options)
    learned = chain.from_iterable(map(pieces, texts)) if options.kind == "bpe" else ()
    return Tokenizer.train(learned, vocab_size=options.vocab_size, end_of_text=options.end_of_text)
