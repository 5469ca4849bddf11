"""The train/validation split and the tokenizer, chosen from the start of a corpus.

A document is held out when its hash position is below a threshold, so that neither its order nor
the other documents matter. A small corpus always holds out its lowest position. The tokenizer
learns from training documents only.
"""

import hashlib
import re
from itertools import chain
from typing import NamedTuple

from mla_lm.config import DataConfig
from mla_lm.data.corpora import Corpus, Document
from mla_lm.data.tokenizer import Tokenizer, pieces
from mla_lm.errors import UserError

SAMPLE = 50_000_000  # characters of training text the tokenizer learns from
DISTINCT = 3_000_000  # characters of distinct words in it: BPE training holds 300 bytes for each
WORD = re.compile(r"\w+")


class Split(NamedTuple):
    """Documents below `threshold` are held out; `tokenizer` has seen none of them."""

    threshold: int
    tokenizer: Tokenizer


def hash_position(key: bytes) -> int:
    """The hash of a document's key as a number, uniform in 0 .. 2^64."""
    return int.from_bytes(hashlib.sha256(key).digest()[:8])


def choose_split(cfg: DataConfig, corpus: Corpus, *, tokenizer: Tokenizer | None = None) -> Split:
    """Read as much as is needed; raises UserError when there is too little text for two splits.

    `tokenizer` is used as it is, where there is one already.
    """
    has_val, learns = corpus.val is not None, cfg.tokenizer.kind == "bpe"
    threshold = 0 if has_val else int(cfg.val_fraction * 2**64)
    kept: list[tuple[int, list[str]]] = []
    n_documents, lowest, sample = 0, 2**64, _Sample()
    for document in corpus.train():
        position = hash_position(document.key)
        text = _start(document, SAMPLE if learns and position >= threshold else 1)
        if not text:
            continue
        n_documents, lowest = n_documents + 1, min(lowest, position)
        if position >= threshold:
            kept.append((position, text))
            sample.add(text)
        enough = sample.full if learns else has_val or lowest < threshold
        if n_documents >= 2 and kept and (enough or sample.full):
            break
    if n_documents < 2 - has_val:
        raise UserError(
            f"{corpus.name}: {n_documents} document(s), too little text to train and validate"
        )
    if not has_val and lowest >= threshold:
        threshold = lowest + 1
    texts = [text for position, text in kept if position >= threshold]
    if not texts and kept:
        raise UserError(f"{corpus.name}: {n_documents} documents, all the same")
    if not texts:
        raise UserError(f"data.val_fraction={cfg.val_fraction}: leaves no document to train on")
    return Split(threshold, tokenizer or _trained(cfg, texts if learns else []))


class _Sample:
    """Counts the text the tokenizer learns from, until it is long or varied enough."""

    def __init__(self) -> None:
        self.size = self.distinct = 0
        self.words: set[str] = set()

    def add(self, text: list[str]) -> None:
        new = set().union(*map(WORD.findall, text)) - self.words
        self.words |= new
        self.distinct += sum(map(len, new))
        self.size += sum(map(len, text))

    @property
    def full(self) -> bool:
        return self.size >= SAMPLE or self.distinct >= DISTINCT


def _start(document: Document, n_characters: int) -> list[str]:
    """The parts of a document up to a number of characters."""
    start, size = [], 0
    for part in filter(None, document.parts):
        start.append(part)
        size += len(part)
        if size >= n_characters:
            break
    return start


def _trained(cfg: DataConfig, texts: list[list[str]]) -> Tokenizer:
    learned = chain.from_iterable(map(pieces, texts))
    options = cfg.tokenizer
    return Tokenizer.train(learned, vocab_size=options.vocab_size, end_of_text=options.end_of_text)
