"""What every corpus yields: documents as streams of text, and a description that costs nothing."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from mla_lm.errors import UserError


class Document(NamedTuple):
    """A text in `parts`, which may be empty, and the bytes `key` whose hash chooses its split."""

    key: bytes
    parts: Iterable[str]


class Corpus(NamedTuple):
    """Documents in a fixed order, and what tells two corpora apart without reading them."""

    name: str  # for messages
    source: dict[str, Any]
    n_bytes: int | None  # of text where it is known, for the progress bar
    train: Callable[[], Iterator[Document]]
    val: Callable[[], Iterator[Document]] | None  # None: a share of `train` is held out


def row(text: str | None, where: str) -> Document:
    """A document without a name: its own text is its key. None is an empty text."""
    try:
        return Document((text or "").encode(), (text,) if text else ())
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: half a surrogate pair at character {error.start}") from None


def row_of(record: Any, field: str, where: str) -> Document:
    """The string in one field of a record; UserError where there is none."""
    if not isinstance(record, dict):
        raise UserError(f"{where}: not a JSON object")
    if field not in record:
        raise UserError(f"{where}: no {field!r} in {str([*record])[:80]}")
    if not isinstance(record[field], str | None):
        raise UserError(f"{where}: {field!r} is not a string")
    return row(record[field], where)
