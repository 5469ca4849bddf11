"""Text to ids and back without loss, in pieces too, and the exact bytes behind each id."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from mla_lm import load_config
from mla_lm.data import Tokenizer
from mla_lm.data import tokenizer as module
from mla_lm.data.tokenizer import pieces
from tests.data.conftest import END_OF_TEXT, some_text
from tests.data.foreign_tokenizers import CHUNKS, KINDS, library, texts, tokenizer_of

ADDED = ["<tool_call>", "終 end", "   ", "\n\t"]
SPECIAL = ["<|im_start|>", "終<|x|>"]
ALL_KINDS = (*KINDS, "bytes", "added")
chunks = st.lists(st.sampled_from(CHUNKS), max_size=12).map("".join)
long_texts = st.lists(chunks, max_size=12).map(lambda c: "".join(t + " some words" for t in c))
each_foreign = pytest.mark.parametrize("kind", KINDS)


@cache
def some_tokenizer(kind: str) -> Tokenizer:
    """One of `KINDS`, one token per byte, or one with added tokens, special and not."""
    if kind == "bytes":
        return Tokenizer.train([], vocab_size=257, end_of_text=END_OF_TEXT)
    if kind != "added":
        return tokenizer_of(kind)
    bpe = library("llama")
    bpe.add_tokens([AddedToken(content, normalized=False) for content in ADDED])
    bpe.add_special_tokens(SPECIAL)
    return Tokenizer(bpe.to_str(), end_of_text=END_OF_TEXT)


@pytest.mark.parametrize("kind", ALL_KINDS)
@given(text=texts | st.lists(st.sampled_from([*CHUNKS, *ADDED, *SPECIAL])).map("".join))
def test_no_character_and_no_byte_is_lost(kind: str, text: str) -> None:
    tokenizer = some_tokenizer(kind)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.token_bytes[i] for i in ids) == text.encode()
    assert tokenizer.n_bytes(ids) == len(text.encode())
    assert tokenizer.end_of_text not in ids


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_bytes_of_each_token_are_what_it_decodes_to(kind: str) -> None:
    tokenizer = some_tokenizer(kind)
    assert len(tokenizer.token_bytes) == tokenizer.vocab_size
    for i, found in enumerate(tokenizer.token_bytes):
        assert found.decode(errors="replace") == tokenizer.decode([i])
        assert len(found) == tokenizer.byte_lengths[i]
    assert tokenizer.byte_lengths[tokenizer.end_of_text] == 0


@given(batch=st.lists(texts, max_size=6))
def test_batch_equals_one_by_one(tokenizer: Tokenizer, batch: list[str]) -> None:
    assert tokenizer.encode_batch(batch) == [tokenizer.encode(text) for text in batch]


def test_special_tokens_are_left_out_of_decoded_text(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.end_of_text, *tokenizer.encode("def f"), tokenizer.end_of_text]
    assert tokenizer.decode(ids) == "def f"


@pytest.mark.parametrize("vocab_size", [257, 290, 300])
def test_training_gives_the_size_asked_for_and_the_same_again(vocab_size: int) -> None:
    corpus = [some_text(300, seed=seed) for seed in range(20)]
    first, second, other = (
        Tokenizer.train(iter(given_texts), vocab_size=vocab_size, end_of_text=END_OF_TEXT)
        for given_texts in (corpus, corpus, corpus[:5])
    )
    assert first.vocab_size == vocab_size
    assert first.json == second.json
    assert (first.json != other.json) == (vocab_size > 257)


def test_json_holds_everything(tokenizer: Tokenizer) -> None:
    again = Tokenizer(tokenizer.json, end_of_text=END_OF_TEXT)
    assert again.json == tokenizer.json
    assert again.end_of_text == tokenizer.end_of_text
    np.testing.assert_array_equal(again.byte_lengths, tokenizer.byte_lengths)


@each_foreign
@given(text=long_texts, piece=st.integers(16, 23), parted=st.booleans())
def test_pieces_have_the_ids_of_the_whole(kind: str, text: str, piece: int, parted: bool) -> None:
    tokenizer = tokenizer_of(kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", piece)
        found = list(pieces(list(text) if parted else [text]))
    assert "".join(found) == text
    assert [i for ids in tokenizer.encode_batch(found) for i in ids] == tokenizer.encode(text)
    assert len(found) > 1 or len(text) < 9 * piece


@each_foreign
@pytest.mark.parametrize("unit", ["a", "終", " ", "\n", "9", ";\n \n", "  \n", "🙂\t", "1 2 "])
def test_pieces_of_a_text_without_words_keep_it(
    kind: str, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", 7)
    tokenizer, short = tokenizer_of(kind), unit * (50 // len(unit))
    found = list(pieces([unit * 201]))
    assert len(found) > 1
    assert tokenizer.decode([i for ids in map(tokenizer.encode, found) for i in ids]) == unit * 201
    if unit not in ("a", "1 2 "):
        ids = [i for piece in pieces([short]) for i in tokenizer.encode(piece)]
        assert ids == tokenizer.encode(short)


@pytest.mark.parametrize("kind", ["ours", "qwen", "bytes"])
@pytest.mark.parametrize("prompt", ["def ", "    ", " ", "a  "])
def test_a_prompt_that_ends_in_a_space_leaves_it_to_the_first_token(kind: str, prompt: str) -> None:
    tokenizer = some_tokenizer(kind)
    ids, allowed = tokenizer.encode_prompt(prompt)
    assert allowed is not None
    assert allowed.any()
    assert not allowed[tokenizer.end_of_text]
    for first in np.flatnonzero(allowed):
        assert tokenizer.decode([*ids, int(first)]).startswith(prompt)
    expected = [tokenizer.end_of_text, *tokenizer.encode("def")]
    assert tokenizer.encode_prompt("def") == (expected, None)


def test_bytes_are_one_token_each_and_the_model_has_room_for_them() -> None:
    tokenizer = Tokenizer.train([some_text(900, seed=2)], vocab_size=257, end_of_text=END_OF_TEXT)
    assert len(tokenizer.encode("return self")) == 11
    assert np.delete(tokenizer.byte_lengths, tokenizer.end_of_text).tolist() == [1] * 256
    cfg = load_config(["model=nano", "data/tokenizer=bytes"])
    assert (cfg.data.tokenizer.vocab_size, cfg.model.vocab_size) == (257, 320)
