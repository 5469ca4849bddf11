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
    """The index in `CODE` (Python) or `PROSE` of each id, by its first character but spaces.

    Each document is lexed by itself.
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
    of_bytes = np.concatenate(
        [
            np.full(len(part.encode("utf-8", "surrogateescape")), names.index(kind))
            for part, kind in (_lexed(text) if code else _words(text))
        ]
        or [np.empty(0, dtype=np.int64)]
    )
    starts = np.cumsum([0, *map(len, pieces)])
    leading = np.array([len(p) - len(p.lstrip(b" ")) for p in pieces], dtype=np.int64)
    sizes = np.diff(starts)
    inside = starts[:-1] + np.minimum(leading, np.maximum(sizes - 1, 0))
    kinds = np.full(len(ids), NO_TEXT, dtype=np.int64)
    kinds[sizes > 0] = of_bytes[inside[sizes > 0]]
    return kinds


def _words(text: str) -> Iterator[tuple[str, str]]:
    for match in OF_PROSE.finditer(text):
        assert match.lastgroup is not None
        yield match[0], match.lastgroup


def _lexed(text: str) -> Iterator[tuple[str, str]]:
    """Parts of Python source and their kinds."""
    from pygments.lexers.python import PythonLexer
    from pygments.token import Comment, Keyword, Name, Number, String, Whitespace

    families = {
        Comment: "comment",
        String: "string",
        Number: "number",
        Keyword: "keyword",
        Name: "name",
    }
    for _, token_type, part in PythonLexer().get_tokens_unprocessed(text):
        kind = next((name for family, name in families.items() if token_type in family), "operator")
        yield part, "space" if token_type in Whitespace or part.isspace() else kind
