"""Cut a stream of text into pieces without losing a character."""

import re
from collections.abc import Iterable, Iterator, Sequence


def cut(
    parts: Iterable[str], boundaries: Sequence[re.Pattern[str]], *, at_least: int, at_most: int
) -> Iterator[str]:
    """Pieces of `at_least` to `at_most` characters (the last may be shorter) that join to `parts`.

    A piece ends where the first of the `boundaries` matches in that range; only a text that is too
    long without may end at the next of them. How the text was parted does not matter; no more than
    one part and `at_most` characters are held.
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
