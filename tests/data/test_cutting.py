"""Cutting text: nothing is lost, and how the text came in makes no difference."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mla_lm.data.tokenizer import cut

WORD_END = re.compile(r"(?<=\w)(?= )")
LINE = re.compile(r"\n")
BLANK = re.compile(r"\n\s*\n")

texts = st.text(alphabet="ab \n終🙂", max_size=120)
boundaries = st.sampled_from([(), (LINE,), (BLANK, LINE), (WORD_END,), (LINE, WORD_END)])


@given(
    text=texts,
    boundaries=boundaries,
    at_least=st.integers(1, 9),
    more=st.integers(1, 15),
    places=st.lists(st.integers(0, 120)),
)
def test_pieces_join_to_the_text_keep_their_sizes_and_end_at_boundaries(
    text: str,
    boundaries: Sequence[re.Pattern[str]],
    at_least: int,
    more: int,
    places: list[int],
) -> None:
    parts = [text[a:b] for a, b in pairwise([0, *sorted(places), len(text)])]
    found, parted, letters = (
        list(cut(given_as, boundaries, at_least=at_least, at_most=at_least + more))
        for given_as in ([text], parts, list(text))
    )
    assert found == parted == letters
    assert "".join(found) == text
    assert all(at_least <= len(piece) <= at_least + more for piece in found[:-1])
    assert all(0 < len(piece) <= at_least + more for piece in found[-1:])
    for piece in found[:-1] if boundaries == (LINE,) else ():
        first = piece.find("\n", at_least)
        assert first in (-1, len(piece) - 1)
        assert first >= 0 or len(piece) == at_least + more


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abc\nd\n\nfg", ["abc\nd\n\n", "fg"]),
        ("abcdef\n\nhi", ["abcdef\n\n", "hi"]),
        ("abcd\nefgh", ["abcd\n", "efgh"]),
        ("a\nbcdefghijk", ["a\nbcdefg", "hijk"]),
        ("abcdefgh", ["abcdefgh"]),
        ("abcdefghi", ["abcdefgh", "i"]),
        ("", []),
    ],
    ids=[
        "first boundary beats an earlier second",
        "boundary at the very end",
        "second boundary",
        "boundary too early",
        "just as long as allowed",
        "too long by one",
        "empty",
    ],
)
def test_where_a_piece_ends(text: str, expected: list[str]) -> None:
    assert list(cut([text], (BLANK, LINE), at_least=3, at_most=8)) == expected


def test_no_more_is_read_than_needed() -> None:
    def parts() -> Iterator[str]:
        yield from ("abcdefg\n", "hijklmnop")
        raise AssertionError("read on")

    assert next(cut(parts(), (LINE,), at_least=5, at_most=9)) == "abcdefg\n"
