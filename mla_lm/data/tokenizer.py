"""Byte-level BPE through the `tokenizers` library; knows the exact bytes behind each token."""

import sys
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import tokenizers
from numpy.typing import NDArray

END_OF_TEXT = "<|endoftext|>"
SPACE = "Ġ"  # how the byte-level alphabet writes a space


class Tokenizer:
    """Text to ids and back without loss; `END_OF_TEXT` stands before each document."""

    def __init__(self, json: str) -> None:
        self.json = json
        self._bpe = tokenizers.Tokenizer.from_str(json)
        end_of_text = self._bpe.token_to_id(END_OF_TEXT)
        if end_of_text is None:
            raise ValueError(f"the tokenizer has no {END_OF_TEXT}")
        self.end_of_text: int = end_of_text
        self.vocab_size: int = self._bpe.get_vocab_size()

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int) -> "Tokenizer":
        """Learn merges until the vocabulary, bytes and `END_OF_TEXT` included, has `vocab_size`."""
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
        bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=sys.stderr.isatty(),
        )
        bpe.train_from_iterator(texts, trainer)
        return cls(bpe.to_str())

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; what looks like a special token in it is plain text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of several texts, in parallel."""
        self._bpe.encode_special_tokens = True
        return [encoding.ids for encoding in self._bpe.encode_batch_fast(list(texts))]

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
    def byte_lengths(self) -> NDArray[np.int64]:
        """Bytes of text behind each id (vocab_size,); 0 for `END_OF_TEXT`."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, index in self._bpe.get_vocab().items():
            lengths[index] = len(token)  # a byte-level alphabet: one character, one byte
        lengths[self.end_of_text] = 0
        return lengths
