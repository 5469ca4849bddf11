"""Byte-level tokenizers through the `tokenizers` library; exact bytes behind each token."""

import json
import logging
import os
import re
import string
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from mla_lm.config import TokenizerConfig
from mla_lm.data.cutting import cut
from mla_lm.errors import UserError, one_line

PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))  # bytes written as themselves
OTHER = [byte for byte in range(256) if byte not in PRINTABLE]
# The byte-level alphabet (GPT-2): one character for each byte.
BYTE_OF = {chr(b): b for b in PRINTABLE} | {chr(256 + i): b for i, b in enumerate(OTHER)}
SPACE = "Ġ"  # a space in it
PIECE = 2048  # characters: the library encodes long texts slowly, and pieces in parallel
PROBES = ("two words", "  A\n\n\tb - c_d's 1234,5 ", "Cafe\u0301 naïve 終 🙂", string.printable)
BETWEEN_WORDS = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])")  # where every pre-tokenizer in use splits
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
BEFORE_SPACE = re.compile(r"(?<=\S)(?=\s)")


class Tokenizer:
    """Text to ids and back without loss; the id `end_of_text` stands before each document.

    `content` is the JSON of the library. Raises ValueError for a tokenizer that cannot do this:
    one that is not byte-level or changes its text.
    """

    def __init__(self, content: str, *, end_of_text: str) -> None:
        self._bpe = tokenizers.Tokenizer.from_str(_lossless(content))
        self._bpe.encode_special_tokens = True  # what looks like a special token in text is text
        self.json: str = self._bpe.to_str()
        found = self._bpe.token_to_id(end_of_text)
        special = [t.content for t in self._bpe.get_added_tokens_decoder().values() if t.special]
        if found is None or end_of_text not in special:
            raise ValueError(f"no special token {end_of_text}, it has {', '.join(special[:8])}")
        self.end_of_text: int = found
        self.vocab_size = 1 + max(self._bpe.get_vocab().values())
        self._require_lossless()

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
            show_progress=sys.stderr.isatty(),
        )
        bpe.train_from_iterator(texts, trainer)
        return cls(bpe.to_str(), end_of_text=end_of_text)

    @classmethod
    def pretrained(cls, cfg: TokenizerConfig) -> "Tokenizer":
        """The tokenizer that `cfg.path` names; raises UserError where it cannot be used."""
        found, limit = _load(str(cfg.path), end_of_text=cfg.end_of_text), cfg.vocab_size
        if found.vocab_size > limit:
            raise UserError(f"data.tokenizer.vocab_size={limit}: {cfg.path} has {found.vocab_size}")
        return found

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; what looks like a special token in it is plain text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of several texts, in parallel."""
        encoded = self._bpe.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def encode_prompt(self, prompt: str) -> tuple[list[int], NDArray[np.bool_] | None]:
        """Ids to continue, and which ids (vocab_size,) may come first; None: any.

        Tokens carry the space in front of a word, so a prompt that ends in a space would cut one
        in two: that space is left to the first new token instead.
        """
        if not prompt.endswith(" "):
            return [self.end_of_text, *self.encode(prompt)], None
        allowed = np.zeros(self.vocab_size, dtype=np.bool_)
        for token, index in self._bpe.get_vocab().items():
            allowed[index] = token.startswith(SPACE)
        return [self.end_of_text, *self.encode(prompt[:-1])], allowed

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out; bytes that are not UTF-8 become U+FFFD."""
        return str(self._bpe.decode(list(ids)))

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of text behind each id; none for special tokens and unused ids."""
        found = [b""] * self.vocab_size
        for token, index in self._bpe.get_vocab().items():
            found[index] = bytes(BYTE_OF.get(character, 0) for character in token)
        for index, added in self._bpe.get_added_tokens_decoder().items():
            found[index] = b"" if added.special else added.content.encode()
        return found

    @cached_property
    def byte_lengths(self) -> NDArray[np.int64]:
        """How many bytes of text are behind each id (vocab_size,)."""
        return np.array([len(found) for found in self.token_bytes], dtype=np.int64)

    def n_bytes(self, ids: Sequence[int]) -> int:
        """Bytes of text behind several ids."""
        return int(self.byte_lengths[np.array(ids, dtype=np.int64)].sum())

    def difference(self, text: str) -> str | None:
        """How a text comes back when it is not what went in."""
        ids = self.encode(text)
        if (back := self.decode(ids)) == text and self.n_bytes(ids) == len(text.encode()):
            return None
        return f"{text[:40]!r} comes back as {back[:40]!r}"

    def _require_lossless(self) -> None:
        """Try texts that tokenizers are known to change, and every added token."""
        added = [t.content for t in self._bpe.get_added_tokens_decoder().values() if not t.special]
        for text in (*PROBES, *(f"a {content} b" for content in added)):
            if difference := self.difference(text):
                raise ValueError(f"changes its text: {difference}")


def pieces(parts: Iterable[str]) -> Iterator[str]:
    """A text in pieces whose ids, joined, are those of the whole.

    They end between words; a text without a word's end in `8 * PIECE` characters is cut there,
    and may then have a token more.
    """
    return cut(parts, (BETWEEN_WORDS, BEFORE_SPACE), at_least=PIECE, at_most=8 * PIECE)


def vocabulary_of(path: str) -> int:
    """Size of the vocabulary of an existing tokenizer."""
    return 1 + max(tokenizers.Tokenizer.from_str(_read(path)).get_vocab().values(), default=-1)


def _load(path: str, *, end_of_text: str) -> Tokenizer:
    content = _read(path)
    try:
        return Tokenizer(content, end_of_text=end_of_text)
    except Exception as error:  # the library raises plain `Exception`
        reason = error if type(error) is ValueError else one_line(error)
        raise UserError(f"data.tokenizer.path={path}: {reason}") from None


def _read(path: str) -> str:
    """The JSON of a tokenizer: a file, a folder with a `tokenizer.json`, or a name on the hub."""
    where = Path(os.path.expanduser(path))
    where = where / "tokenizer.json" if where.is_dir() else where
    if not where.is_file() and not HUB_NAME.fullmatch(path):
        raise UserError(f"data.tokenizer.path={path}: no such file, and no name on the hub")
    try:
        if where.is_file():
            content = where.read_text(encoding="utf-8")
            tokenizers.Tokenizer.from_str(content)
            return content
        from huggingface_hub.utils import logging as of_hub

        of_hub.set_verbosity(logging.CRITICAL)  # it prints what it raises
        return str(tokenizers.Tokenizer.from_pretrained(path).to_str())
    except Exception as error:  # the library raises plain `Exception`
        raise UserError(f"data.tokenizer.path={path}: no tokenizer ({one_line(error)})") from None


def _lossless(content: str) -> str:
    """The JSON of a byte-level BPE without what changes or adds to text: NFC, padding, dropout."""
    stages = json.loads(content)
    levels = [s["type"] for key in ("pre_tokenizer", "decoder") for s in _stages(stages.get(key))]
    if levels.count("ByteLevel") < 2 or stages["model"].get("type") != "BPE":
        raise ValueError("not a byte-level tokenizer; bits per byte could not be exact")
    alphabet = set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    if missing := alphabet - stages["model"]["vocab"].keys():
        raise ValueError(f"has no token for {len(missing)} of the 256 bytes")
    if changes := {s["type"] for s in _stages(stages.get("normalizer"))} - {"NFC"}:
        raise ValueError(f"changes its text ({', '.join(sorted(changes))})")
    stages["model"]["dropout"] = None
    unused = ("normalizer", "padding", "truncation", "post_processor")
    return json.dumps(stages | dict.fromkeys(unused))


def _stages(stage: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a stage of the pipeline, sequences opened."""
    if stage is None:
        return []
    for key in ("pretokenizers", "normalizers", "decoders"):
        if key in stage:
            return [inner for part in stage[key] for inner in _stages(part)]
    return [stage]
