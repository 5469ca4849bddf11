"""From ids to text as they come: whole characters, up to a stop string."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mla_lm.data import Tokenizer
from mla_lm.generation import TextStream
from tests.generation.conftest import END_OF_TEXT, Ids

BYTES = Tokenizer.train([], vocab_size=257, end_of_text=END_OF_TEXT)
CHARACTERS = "ab \nä終🙂e\u0301"
texts = st.text(alphabet=CHARACTERS, max_size=25) | st.text(max_size=12)
stop_strings = st.lists(st.text(alphabet="ab終", min_size=1, max_size=4), min_size=1, max_size=3)


def parts(ids: Ids, cuts: Sequence[int]) -> list[Ids]:
    """`ids` in pieces that end at `cuts`, some of them empty."""
    ends = [*sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    return [ids[start:end] for start, end in zip([0, *ends], ends, strict=False)]


cut_points = st.lists(st.integers(0, 200), max_size=12)


def streamed(tokenizer: Tokenizer, pieces: Sequence[Ids], stops: Sequence[str] = ()) -> list[str]:
    stream = TextStream(tokenizer, stops)
    return [*(stream.feed(ids) for ids in pieces), stream.close()]


@pytest.fixture(scope="module", params=["bpe", "bytes"])
def each_tokenizer(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Tokenizer:
    return tokenizer if request.param == "bpe" else BYTES


@given(text=texts, cuts=cut_points)
def test_pieces_are_whole_characters_and_join_to_the_text(
    each_tokenizer: Tokenizer, text: str, cuts: list[int]
) -> None:
    ids = each_tokenizer.encode(text)
    stream, joined = TextStream(each_tokenizer), ""
    n_fed = 0
    for piece in parts(ids, cuts):
        joined += stream.feed(piece)
        n_fed += len(piece)
        complete = each_tokenizer.decode(ids[:n_fed])  # but for the beginning of a character
        assert joined == text[: len(joined)]
        assert joined in (complete, complete.rstrip("\ufffd"))
    assert stream.close() == ""
    assert joined == text


@given(ids=st.lists(st.integers(0, 330), max_size=30), cuts=cut_points)
def test_any_ids_give_the_text_that_decode_gives(
    each_tokenizer: Tokenizer, ids: Ids, cuts: list[int]
) -> None:
    """Bytes that are not UTF-8, special tokens, and ids beyond the vocabulary among them."""
    known = [i for i in ids if i < each_tokenizer.vocab_size]
    pieces = streamed(each_tokenizer, parts(ids, cuts))
    assert "".join(pieces) == each_tokenizer.decode(known)


def test_special_tokens_and_padding_give_no_text(each_tokenizer: Tokenizer) -> None:
    inside = [each_tokenizer.end_of_text, each_tokenizer.vocab_size, 10**6]
    stream = TextStream(each_tokenizer)
    assert stream.feed(inside) == ""
    for i in each_tokenizer.encode("終"):
        assert stream.feed(inside) == ""
        ends = stream.feed([i, *inside])
    assert ends == "終"
    assert stream.close() == ""


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the stop string begins that is complete first, the longest of several."""
    for end in range(len(text) + 1):
        begins = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if begins:
            return min(begins)
    return None


def begun(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that a stop string begins with."""
    lengths = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return max(lengths, default=0)


@given(text=st.text(alphabet="ab終", max_size=14), stops=stop_strings, cuts=cut_points)
def test_text_ends_before_the_first_stop_string_however_it_comes(
    each_tokenizer: Tokenizer, text: str, stops: list[str], cuts: list[int]
) -> None:
    ids = each_tokenizer.encode(text)
    at = first_stop(text, stops)
    assert "".join(streamed(each_tokenizer, parts(ids, cuts), stops)) == text[:at]
    assert "".join(streamed(each_tokenizer, [ids], stops)) == text[:at]
    assert "".join(streamed(each_tokenizer, [[i] for i in ids], stops)) == text[:at]


@given(text=st.text(alphabet="ab", max_size=14), stops=stop_strings)
def test_no_more_is_held_back_than_may_begin_a_stop_string(text: str, stops: list[str]) -> None:
    stream, joined = TextStream(BYTES, stops), ""
    for n_fed, i in enumerate(BYTES.encode(text), start=1):
        joined += stream.feed([i])
        at = first_stop(text[:n_fed], stops)
        assert stream.stopped == (at is not None)
        expected = text[:n_fed][: n_fed - begun(text[:n_fed], stops)] if at is None else text[:at]
        assert joined == expected
    joined += stream.close()
    assert joined == text[: first_stop(text, stops)]
