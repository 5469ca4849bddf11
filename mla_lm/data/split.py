"""The train/validation split, and the tokenizer, which learns from training documents only.

A document is held out when its hash position is below a threshold, so that neither its order nor
the other documents matter. The threshold is chosen from the start of a corpus; a small corpus holds
out the document with the lowest position. A document that is longer than the validation split is
to be is cut at blank lines first, so that no single one decides how large the two splits are.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from itertools import chain

from mla_lm.config import DataConfig
from mla_lm.data.corpora import Corpus, Document
from mla_lm.data.tokenizer import Tokenizer, cut, pieces
from mla_lm.errors import UserError

SAMPLE = 50_000_000  # characters of training text the tokenizer learns from
DISTINCT = 3_000_000  # characters of distinct words in it: BPE training holds 300 bytes for each
WORD = re.compile(r"\w+")
PART = 4096  # characters: a document that is cut becomes documents of about this size
BOUNDARIES = re.compile(r"\n[ \t\r]*\n"), re.compile(r"\n")  # a blank line, a line end
# Part of a document: its split, whether a document starts, and text. An empty document starts none.
Piece = tuple[str, bool, str]


def hash_position(key: bytes) -> int:
    """The hash of a document's key as a number, uniform in 0 .. 2^64."""
    return int.from_bytes(hashlib.sha256(key).digest()[:8])


def cut_above(cfg: DataConfig, corpus: Corpus) -> int | None:
    """Characters beyond which a document is cut: `val_fraction` of the corpus, or of its start.

    None where the validation split is given, or all documents have one length.
    """
    if corpus.val is not None or cfg.kind == "synthetic":
        return None
    n_characters = 0
    for part in chain.from_iterable(document.parts for document in corpus.train()):
        n_characters += len(part)
        if n_characters >= SAMPLE:
            break
    return max(PART, int(cfg.val_fraction * min(n_characters, SAMPLE)))


def with_parts(corpus: Corpus, above: int | None) -> Corpus:
    """The corpus with documents of more than `above` characters cut; a part's key is its text."""
    if above is None:
        return corpus

    def documents() -> Iterator[Document]:
        for document in corpus.train():
            rest = iter(document.parts)
            start = _start(rest, above + 1)
            if len(start) <= above:
                yield Document(document.key, [start])
                continue
            for part in cut(chain([start], rest), BOUNDARIES, at_least=PART, at_most=4 * PART):
                yield Document(part.encode(), [part])

    return corpus._replace(train=documents)


def choose_split(
    cfg: DataConfig, corpus: Corpus, *, tokenizer: Tokenizer | None = None
) -> tuple[int, Tokenizer]:
    """The threshold, and `tokenizer` or one that has seen no held-out document.

    Reads as much as is needed; raises UserError when no training text is left.
    """
    has_val, learns = corpus.val is not None, cfg.tokenizer.kind == "bpe"
    threshold = 0 if has_val else int(cfg.val_fraction * 2**64)
    kept, words = list[tuple[int, str]](), set[str]()
    n_documents, n_characters, n_distinct, lowest = 0, 0, 0, 2**64
    for document in corpus.train():
        position = hash_position(document.key)
        text = _start(document.parts, SAMPLE if learns and position >= threshold else 1)
        if not text:
            continue
        n_documents, lowest = n_documents + 1, min(lowest, position)
        if position >= threshold:
            kept.append((position, text))
            new = {*WORD.findall(text)} - words
            words |= new
            n_distinct += sum(map(len, new))
            n_characters += len(text)
        enough = not learns and (has_val or lowest < threshold)
        full = n_characters >= SAMPLE or n_distinct >= DISTINCT
        if n_documents >= 2 and kept and (enough or full):
            break
    if not has_val and lowest >= threshold:
        threshold = lowest + 1
    texts = [text for position, text in kept if position >= threshold]
    if not texts:
        held_out = f"{n_documents} document(s) with text, none left for training"
        share = "" if has_val else f" (data.val_fraction={cfg.val_fraction})"
        raise UserError(f"{corpus.name}: {held_out}{share}")
    if tokenizer is None:
        learned = (piece for text in texts if learns for piece in pieces([text]))
        keys = cfg.tokenizer.model_dump(include={"vocab_size", "end_of_text"})
        tokenizer = Tokenizer.train(learned, **keys)
    return threshold, tokenizer


def _start(parts: Iterable[str], n_characters: int) -> str:
    """The first characters of a text, in whole parts."""
    start = ""
    for part in parts:
        start += part
        if len(start) >= n_characters:
            break
    return start


def pieces_of(corpus: Corpus, threshold: int) -> Iterator[Piece]:
    """The pieces of all documents: those of `train()`, split by the threshold, and of `val()`."""
    train = ((document, hash_position(document.key) < threshold) for document in corpus.train())
    val = ((document, True) for document in (corpus.val() if corpus.val else ()))
    for document, held_out in chain(train, val):
        split = "val" if held_out else "train"
        starts = True
        for text in pieces(document.parts):
            yield split, starts, text
            starts = False
        if starts:
            yield split, False, ""
