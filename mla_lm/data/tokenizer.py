"""Byte-level tokenizers through the `tokenizers` library; the exact bytes of each token."""

import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from mla_lm.config import TokenizerConfig
from mla_lm.errors import UserError, one_line
from mla_lm.files import read_text

PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))  # bytes written as themselves
OTHER = [byte for byte in range(256) if byte not in PRINTABLE]
# The byte-level alphabet (GPT-2): one character for each byte.
BYTE_OF = {chr(b): b for b in PRINTABLE} | {chr(256 + i): b for i, b in enumerate(OTHER)}
SPACE = "Ġ"  # a space in it
PIECE = 2048  # characters: the library encodes long texts slowly, and pieces in parallel
CODE_POINTS = (*range(0x800), *range(0x800, 0xD800, 0x800), *range(0xE000, 0x110000, 0x1000))
EVERY_BYTE = "".join(map(chr, CODE_POINTS))
PROBES = ("two words", "  A\n\n\tb - c_d's 1234,5 ", "Cafe\u0301 naïve 終 🙂", EVERY_BYTE)
BETWEEN_WORDS = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])")  # where every pre-tokenizer in use splits
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
BEFORE_SPACE = re.compile(r"(?<=\S)(?=\s)")
N_IDS = 2**22  # no published vocabulary has a quarter of it; arrays of that length are made


class Tokenizer:
    """Text to ids and back without loss; the id `end_of_text` stands before each document.

    `content` is the JSON of the library. Raises ValueError for a tokenizer that changes text.
    """

    def __init__(self, content: str, *, end_of_text: str) -> None:
        self._bpe = tokenizers.Tokenizer.from_str(_without_extras(content))
        self._bpe.encode_special_tokens = True  # what looks like a special token in text is text
        self.json: str = self._bpe.to_str()
        self.vocab_size = 1 + max(self._bpe.get_vocab().values())
        added = self._bpe.get_added_tokens_decoder()
        known = [token.content for token in added.values() if not token.special]
        for text in (*PROBES, *(f"a {content} b" for content in known)):
            if difference := self.difference(text):
                raise ValueError(f"not a lossless byte-level tokenizer: {difference}")
        special = {token.content: index for index, token in added.items() if token.special}
        if end_of_text not in special:
            raise ValueError(f"no special token {end_of_text}, it has {', '.join([*special][:8])}")
        self.end_of_text = special[end_of_text]

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int, end_of_text: str) -> "Tokenizer":
        """Learn merges until the vocabulary, bytes and `end_of_text` included, has `vocab_size`.

        Without texts, or with a size of 257, every byte stays a token of its own.
        """
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
        bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[end_of_text],
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=sys.__stderr__ is not None and sys.__stderr__.isatty(),
        )
        bpe.train_from_iterator(texts, trainer)
        return cls(bpe.to_str(), end_of_text=end_of_text)

    @classmethod
    def pretrained(cls, cfg: TokenizerConfig) -> "Tokenizer":
        """The tokenizer that `cfg.path` names; raises UserError where it cannot be used."""
        content = _read(str(cfg.path)).to_str()
        try:
            found = cls(content, end_of_text=cfg.end_of_text)
        except Exception as error:  # the library raises plain `Exception`
            reason = error if type(error) is ValueError else one_line(error)
            raise UserError(f"data.tokenizer.path={cfg.path}: {reason}") from None
        if found.vocab_size > (limit := cfg.vocab_size):
            raise UserError(f"data.tokenizer.vocab_size={limit}: {cfg.path} has {found.vocab_size}")
        return found

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; what looks like a special token in it is plain text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of several texts, in parallel."""
        encoded = self._bpe.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def encode_prompt(self, prompt: str) -> tuple[list[int], NDArray[np.bool_]]:
        """Ids to continue, and which ids (vocab_size,) may come first.

        A token carries the space in front of its word, so a prompt that ends in a space would split
        a token. That space is left to the first new token instead.
        """
        allowed = np.full(self.vocab_size, not prompt.endswith(" "))
        if not allowed.all():
            for token, index in self._bpe.get_vocab().items():
                allowed[index] = token.startswith(SPACE)
        return [self.end_of_text, *self.encode(prompt.removesuffix(" "))], allowed

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out; bytes that are not UTF-8 become U+FFFD."""
        return str(self._bpe.decode(list(ids)))

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of text of each id; none for special tokens and unused ids."""
        found = [b""] * self.vocab_size
        for token, index in self._bpe.get_vocab().items():
            found[index] = bytes(BYTE_OF.get(character, 0) for character in token)
        for index, added in self._bpe.get_added_tokens_decoder().items():
            found[index] = b"" if added.special else added.content.encode()
        return found

    @cached_property
    def byte_lengths(self) -> NDArray[np.int64]:
        """Number of bytes of text of each id (vocab_size,)."""
        return np.array([len(found) for found in self.token_bytes], dtype=np.int64)

    def n_bytes(self, ids: Sequence[int]) -> int:
        """Number of bytes of text of several ids."""
        return int(self.byte_lengths[np.array(ids, dtype=np.int64)].sum())

    def difference(self, text: str) -> str | None:
        """What a text becomes when it is encoded and decoded; None if it stays the same."""
        ids = self.encode(text)
        if (back := self.decode(ids)) == text and self.n_bytes(ids) == len(text.encode()):
            return None
        return f"{text[:40]!r} comes back as {back[:40]!r}"


def pieces(parts: Iterable[str]) -> Iterator[str]:
    """A text in pieces whose ids, joined, are those of the whole.

    Pieces end between words. A text of `8 * PIECE` characters without a boundary between words is
    cut anyway and may then have one more token.
    """
    return cut(parts, (BETWEEN_WORDS, BEFORE_SPACE), at_least=PIECE, at_most=8 * PIECE)


def cut(
    parts: Iterable[str], boundaries: Sequence[re.Pattern[str]], *, at_least: int, at_most: int
) -> Iterator[str]:
    """Pieces of `at_least` to `at_most` characters (the last may be shorter) that join to `parts`.

    A piece ends at a match of the first of the `boundaries`, or, where that has no match in
    `at_most` characters, of the next one. How the text is divided into `parts` does not matter; at
    most one part and `at_most` characters are in memory.
    """
    text, start = "", 0

    def end_of_piece(allowed: Sequence[re.Pattern[str]]) -> int:
        latest = start + at_most
        matches = (boundary.search(text, start + at_least, latest) for boundary in allowed)
        return next((match.end() for match in matches if match), latest)

    for part in parts:
        text, start = text[start:] + part, 0
        while len(text) - start > at_most:
            yield text[start : (start := end_of_piece(boundaries))]
    while start < len(text):
        yield text[start : (start := end_of_piece(boundaries[:1]))]


def vocabulary_of(path: str) -> int:
    """Size of the vocabulary of an existing tokenizer."""
    return 1 + max(_read(path).get_vocab().values(), default=-1)


def _read(path: str) -> tokenizers.Tokenizer:
    """A file, a folder with a `tokenizer.json`, or a name on the hub."""
    where = Path(path)
    where = where / "tokenizer.json" if where.is_dir() else where
    if not where.is_file() and not HUB_NAME.fullmatch(path):
        raise UserError(f"data.tokenizer.path={path}: no such file, and no name on the hub")
    try:
        if where.is_file():
            return _from_json(read_text(where))
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import logging as of_hub

        of_hub.set_verbosity(logging.CRITICAL)  # it prints what it raises
        return _from_json(read_text(Path(hf_hub_download(path, "tokenizer.json"))))
    except Exception as error:  # the library raises plain `Exception`
        reason = error if type(error) is ValueError else one_line(error)
        raise UserError(f"data.tokenizer.path={path}: no tokenizer ({reason})") from None


def _from_json(content: str) -> tokenizers.Tokenizer:
    _require_ids(json.loads(content))
    return tokenizers.Tokenizer.from_str(content)


def _require_ids(stages: dict[str, Any]) -> None:
    """ValueError for an id that would take the memory of a vocabulary nobody has."""
    vocab = stages["model"]["vocab"]
    ids = [token["id"] for token in stages["added_tokens"] or ()]
    for index in (*ids, *(vocab.values() if isinstance(vocab, dict) else ())):
        if not (type(index) is int and 0 <= index < N_IDS):
            raise ValueError(f"a token has the id {index!r}, ids are below {N_IDS:,}")


def _without_extras(content: str) -> str:
    """The JSON of a tokenizer without what changes or adds to text: NFC, padding, dropout."""
    stages = json.loads(content)
    _require_ids(stages)
    stages |= dict.fromkeys(("padding", "truncation", "post_processor"))
    stages["model"]["dropout"] = None
    normalizer = json.dumps(stages.get("normalizer"))
    if {*re.findall(r'"type": "(\w+)"', normalizer)} <= {"Sequence", "NFC"}:
        stages["normalizer"] = None
    return json.dumps(stages)
