"""The train/validation split and the tokenizer, chosen from the start of a corpus.

A document is held out when its hash position is below a threshold, so that neither its order nor
the other documents matter. A small corpus always holds out its lowest position. The tokenizer
learns from training documents only.
"""

import hashlib
import re
from collections.abc import Iterable

from mla_lm.config import DataConfig
from mla_lm.data.corpora import Corpus
from mla_lm.data.tokenizer import Tokenizer, pieces
from mla_lm.errors import UserError

SAMPLE = 50_000_000  # characters of training text the tokenizer learns from
DISTINCT = 3_000_000  # characters of distinct words in it: BPE training holds 300 bytes for each
WORD = re.compile(r"\w+")


def hash_position(key: bytes) -> int:
    """The hash of a document's key as a number, uniform in 0 .. 2^64."""
    return int.from_bytes(hashlib.sha256(key).digest()[:8])


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
        raise UserError(f"{corpus.name}: {held_out} (data.val_fraction={cfg.val_fraction})")
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
