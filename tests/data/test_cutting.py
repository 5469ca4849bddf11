"""Cutting text: nothing is lost, and how the text came in makes no difference."""

import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mla_lm.data.cutting import cut

WORD_END = re.compile(r"(?<=\w)(?= )")
LINE = re.compile(r"\n")
BLANK = re.compile(r"\n\s*\n")

texts = st.text(alphabet="ab \n終🙂", max_size=120)
boundaries = st.sampled_from([(), (LINE,), (BLANK, LINE), (WORD_END,), (LINE, WORD_END)])
sizes = st.tuples(st.integers(1, 9), st.integers(1, 15)).map(lambda s: (s[0], s[0] + s[1]))


@given(text=texts, boundaries=boundaries, sizes=sizes, places=st.lists(st.integers(0, 120)))
def test_pieces_do_not_depend_on_how_the_text_was_parted(
    text: str, boundaries: tuple[re.Pattern[str], ...], sizes: tuple[int, int], places: list[int]
) -> None:
    at_least, at_most = sizes
    parts = [text[a:b] for a, b in pairwise([0, *sorted(places), len(text)])]
    whole, parted, letters = (
        list(cut(given_as, boundaries, at_least=at_least, at_most=at_most))
        for given_as in ([text], parts, list(text))
    )
    assert whole == parted == letters


@given(text=texts, boundaries=boundaries, sizes=sizes)
def test_pieces_join_to_the_text_and_keep_their_sizes(
    text: str, boundaries: tuple[re.Pattern[str], ...], sizes: tuple[int, int]
) -> None:
    at_least, at_most = sizes
    found = list(cut([text], boundaries, at_least=at_least, at_most=at_most))
    assert "".join(found) == text
    assert all(at_least <= len(piece) <= at_most for piece in found[:-1])
    assert all(0 < len(piece) <= at_most for piece in found[-1:])


@given(text=texts, sizes=sizes)
def test_hard_cuts_only_where_no_boundary_is_in_range(text: str, sizes: tuple[int, int]) -> None:
    at_least, at_most = sizes
    found = list(cut([text], (LINE,), at_least=at_least, at_most=at_most))
    for piece in found[:-1]:
        first = piece.find("\n", at_least)
        assert first in (-1, len(piece) - 1)
        assert first >= 0 or len(piece) == at_most


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
