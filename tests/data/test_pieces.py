"""Pieces of a long text: encoded one by one, they have the ids of the whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mla_lm.data import tokenizer as module
from mla_lm.data.tokenizer import pieces
from tests.data.foreign_tokenizers import CHUNKS, KINDS, tokenizer_of

chunks = st.lists(st.sampled_from(CHUNKS), max_size=12).map("".join)
long_texts = st.lists(chunks, max_size=12).map(lambda c: "".join(t + " some words" for t in c))


@pytest.mark.parametrize("kind", KINDS)
@given(text=long_texts, piece=st.integers(16, 23), parted=st.booleans())
def test_pieces_have_the_ids_of_the_whole(kind: str, text: str, piece: int, parted: bool) -> None:
    tokenizer = tokenizer_of(kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", piece)
        found = list(pieces(list(text) if parted else [text]))
    assert "".join(found) == text
    joined = [i for ids in tokenizer.encode_batch(found) for i in ids]
    assert joined == tokenizer.encode(text)
    assert tokenizer.decode(joined) == text
    assert len(found) > 1 or len(text) < 9 * piece


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", ["a", "終", " ", "\n", "9", ";\n \n", "  \n", "🙂\t", "1 2 "])
def test_pieces_of_a_text_without_words_keep_it(
    kind: str, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", 7)
    tokenizer, text = tokenizer_of(kind), unit * 201
    found = list(pieces([text]))
    assert len(found) > 1
    ids = [i for ids in tokenizer.encode_batch(found) for i in ids]
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", ["終", " ", "\n", "9", ";\n", ";\n \n", "  \n", "🙂\t"])
def test_a_short_text_without_words_has_the_ids_of_the_whole(
    kind: str, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", 7)
    tokenizer, text = tokenizer_of(kind), unit * (50 // len(unit))
    ids = [i for ids in tokenizer.encode_batch(list(pieces([text]))) for i in ids]
    assert ids == tokenizer.encode(text)
