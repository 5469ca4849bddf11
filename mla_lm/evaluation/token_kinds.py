"""Kinds of tokens: keyword, name, number, ... in code; words, numbers, ... in prose.

Which experts take which kinds shows what they specialise in.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mla_lm.data.tokenizer import Tokenizer

CODE = ("keyword", "name", "number", "string", "comment", "operator", "space")
PROSE = ("word", "capitalised", "number", "punctuation", "space")
OF_PROSE = re.compile(
    r"(?P<capitalised>[A-Z][^\W\d_]*)|(?P<word>[^\W\d_]+)|(?P<number>\d+)|(?P<space>\s+)"
    r"|(?P<punctuation>.)",
    re.S,
)
NO_TEXT = -1  # end of text and other ids without bytes


def token_kinds(
    ids: Sequence[int] | NDArray[np.int64], tokenizer: Tokenizer, *, code: bool
) -> NDArray[np.int64]:
    """The index in `CODE` (Python) or `PROSE` of each id, by its first character that is no space.

    Each document is lexed separately.
    """
    ids = np.asarray(ids, dtype=np.int64)
    kinds = np.full(len(ids), NO_TEXT, dtype=np.int64)
    ends = [*np.flatnonzero(ids == tokenizer.end_of_text).tolist(), len(ids)]
    for start, end in zip([0, *ends], ends, strict=False):
        kinds[start:end] = _of_document(ids[start:end].tolist(), tokenizer, code=code)
    return kinds


def _of_document(ids: Sequence[int], tokenizer: Tokenizer, *, code: bool) -> NDArray[np.int64]:
    names = CODE if code else PROSE
    pieces = [tokenizer.token_bytes[i] if i < tokenizer.vocab_size else b"" for i in ids]
    text = b"".join(pieces).decode("utf-8", "surrogateescape")
    parts = list(_lexed(text) if code else _words(text))
    sizes = [len(part.encode("utf-8", "surrogateescape")) for part, _ in parts]
    of_bytes = np.repeat([names.index(kind) for _, kind in parts], sizes)
    kinds, start = np.full(len(ids), NO_TEXT, dtype=np.int64), 0
    for i, piece in enumerate(pieces):
        if piece:
            n_spaces = len(piece) - len(piece.lstrip(b" "))
            kinds[i] = of_bytes[start + min(n_spaces, len(piece) - 1)]
            start += len(piece)
    return kinds


def _words(text: str) -> Iterator[tuple[str, str]]:
    for match in OF_PROSE.finditer(text):
        assert match.lastgroup is not None
        yield match[0], match.lastgroup


def _lexed(text: str) -> Iterator[tuple[str, str]]:
    """Parts of Python source and their kinds."""
    from pygments.lexers.python import PythonLexer
    from pygments.token import Comment, Keyword, Name, Number, String, Whitespace

    families = dict(zip(CODE, (Keyword, Name, Number, String, Comment), strict=False))
    for _, found, part in PythonLexer().get_tokens_unprocessed(text):
        kind = next((kind for kind, family in families.items() if found in family), "operator")
        yield part, "space" if found in Whitespace or part.isspace() else kind
