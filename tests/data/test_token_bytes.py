"""The exact bytes behind each id."""

import json
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from mla_lm.data import Tokenizer
from tests.data.conftest import END_OF_TEXT
from tests.data.foreign_tokenizers import CHUNKS, KINDS, library, texts, tokenizer_of

ADDED = ["<tool_call>", "終 end", "   ", "\n\t"]
SPECIAL = ["<|im_start|>", "終<|x|>"]


@given(text=texts)
def test_byte_lengths_add_up(tokenizer: Tokenizer, text: str) -> None:
    ids = np.array(tokenizer.encode(text), dtype=np.int64)
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())


@cache
def some_tokenizer(kind: str) -> Tokenizer:
    """One of `KINDS`, one token a byte, or one with added tokens, special and not."""
    if kind == "bytes":
        return Tokenizer.train([], vocab_size=257, end_of_text=END_OF_TEXT)
    if kind != "added":
        return tokenizer_of(kind)
    bpe = library("llama")
    bpe.add_tokens([AddedToken(content, normalized=False) for content in ADDED])
    bpe.add_special_tokens(SPECIAL)
    return Tokenizer(bpe.to_str(), end_of_text=END_OF_TEXT)


@pytest.mark.parametrize("kind", [*KINDS, "bytes", "added"])
@given(text=texts | st.lists(st.sampled_from([*CHUNKS, *ADDED, *SPECIAL])).map("".join))
def test_bytes_of_the_tokens_join_to_the_text(kind: str, text: str) -> None:
    tokenizer = some_tokenizer(kind)
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.token_bytes[i] for i in ids) == text.encode()


@pytest.mark.parametrize("kind", [*KINDS, "bytes", "added"])
def test_bytes_of_each_token_are_what_it_decodes_to(kind: str) -> None:
    tokenizer = some_tokenizer(kind)
    assert len(tokenizer.token_bytes) == tokenizer.vocab_size
    for i, found in enumerate(tokenizer.token_bytes):
        assert found.decode(errors="replace") == tokenizer.decode([i])
        assert len(found) == tokenizer.byte_lengths[i]


def test_special_tokens_have_no_bytes_and_added_ones_theirs() -> None:
    tokenizer = some_tokenizer("added")
    known = json.loads(tokenizer.json)["added_tokens"]
    found = {token["content"]: tokenizer.token_bytes[token["id"]] for token in known}
    texts = {text: text.encode() for text in ADDED}
    assert found == dict.fromkeys(("<pad>", END_OF_TEXT, *SPECIAL), b"") | texts


def test_byte_lengths_cover_the_vocabulary(tokenizer: Tokenizer) -> None:
    lengths = tokenizer.byte_lengths
    assert lengths.shape == (tokenizer.vocab_size,)
    assert lengths[tokenizer.end_of_text] == 0
    assert (np.delete(lengths, tokenizer.end_of_text) >= 1).all()
    assert lengths.max() > 1
