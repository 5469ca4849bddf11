"""Text to ids and back without loss, what a tokenizer learns, and how a prompt is begun."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mla_lm import load_config
from mla_lm.data import Tokenizer
from tests.data.conftest import END_OF_TEXT, some_text
from tests.data.foreign_tokenizers import texts, tokenizer_of


@given(text=texts)
def test_decode_inverts_encode(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(batch=st.lists(texts, max_size=6))
def test_batch_equals_one_by_one(tokenizer: Tokenizer, batch: list[str]) -> None:
    assert tokenizer.encode_batch(batch) == [tokenizer.encode(text) for text in batch]


@pytest.mark.parametrize("text", [END_OF_TEXT, f"a{END_OF_TEXT}b", f"{END_OF_TEXT} " * 3])
def test_end_of_text_in_text_is_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.end_of_text not in ids
    assert len(ids) > 1
    assert tokenizer.decode(ids) == text


def test_end_of_text_is_left_out_of_decoded_text(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.end_of_text, *tokenizer.encode("def f"), tokenizer.end_of_text]
    assert tokenizer.decode(ids) == "def f"


@pytest.mark.parametrize("vocab_size", [257, 290, 300])
def test_vocabulary_has_the_size_asked_for(vocab_size: int) -> None:
    trained = Tokenizer.train(
        [some_text(3000, seed=1)], vocab_size=vocab_size, end_of_text=END_OF_TEXT
    )
    assert trained.vocab_size == vocab_size
    every_byte = "".join(map(chr, range(0x800)))
    assert trained.decode(trained.encode(every_byte)) == every_byte


def test_training_is_deterministic() -> None:
    corpus = [some_text(300, seed=seed) for seed in range(20)]
    first, second = (
        Tokenizer.train(iter(corpus), vocab_size=320, end_of_text=END_OF_TEXT) for _ in range(2)
    )
    assert first.json == second.json
    assert first.json != Tokenizer.train(corpus[:5], vocab_size=320, end_of_text=END_OF_TEXT).json


@given(text=texts)
def test_json_holds_everything(tokenizer: Tokenizer, text: str) -> None:
    again = Tokenizer(tokenizer.json, end_of_text=END_OF_TEXT)
    assert again.json == tokenizer.json
    assert again.encode(text) == tokenizer.encode(text)
    assert again.end_of_text == tokenizer.end_of_text
    np.testing.assert_array_equal(again.byte_lengths, tokenizer.byte_lengths)


def assert_space_left_to_the_first_token(tokenizer: Tokenizer, prompt: str) -> None:
    ids, allowed = tokenizer.encode_prompt(prompt)
    assert allowed is not None
    assert allowed.any()
    assert not allowed[tokenizer.end_of_text]
    for first in np.flatnonzero(allowed):
        assert tokenizer.decode([*ids, int(first)]).startswith(prompt)


@pytest.mark.parametrize("prompt", ["def ", "    ", " ", "a  "])
def test_a_prompt_that_ends_in_a_space_leaves_it_to_the_first_token(
    tokenizer: Tokenizer, prompt: str
) -> None:
    assert_space_left_to_the_first_token(tokenizer, prompt)


def test_a_prompt_that_ends_in_a_space_works_for_pretrained_ones() -> None:
    assert_space_left_to_the_first_token(tokenizer_of("qwen"), "some ")


def test_any_other_prompt_may_be_continued_by_any_token(tokenizer: Tokenizer) -> None:
    ids, allowed = tokenizer.encode_prompt("def")
    assert ids == [tokenizer.end_of_text, *tokenizer.encode("def")]
    assert allowed is None


@given(text=texts)
def test_bytes_are_one_token_each(text: str) -> None:
    tokenizer = Tokenizer.train([], vocab_size=257, end_of_text=END_OF_TEXT)
    ids = tokenizer.encode(text)
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer.vocab_size == 257
    assert np.delete(tokenizer.byte_lengths, tokenizer.end_of_text).tolist() == [1] * 256


def test_bytes_are_never_merged() -> None:
    trained = Tokenizer.train([some_text(900, seed=2)], vocab_size=257, end_of_text=END_OF_TEXT)
    assert len(trained.encode("return self")) == 11


def test_model_has_room_for_bytes() -> None:
    cfg = load_config(["model=nano", "data/tokenizer=bytes"])
    assert (cfg.data.tokenizer.vocab_size, cfg.model.vocab_size) == (257, 320)
