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
    train: Callable[[], Iterator[Document]]
    val: Callable[[], Iterator[Document]] | None  # None: a share of `train` is held out


def row(record: Any, field: str, where: str, *, longest: int) -> Document:
    """The string in one field of a record, its own key; null is empty. UserError for all else."""
    if not isinstance(record, dict) or field not in record:
        raise UserError(f"{where}: no {field!r} in {str(record)[:80]}")
    text = "" if record[field] is None else record[field]
    if not isinstance(text, str):
        raise UserError(f"{where}: {field!r} is not a string")
    try:
        key = text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: half a surrogate pair at character {error.start}") from None
    if len(key) > longest:
        raise UserError(f"{where}: {len(key):,} bytes, data.max_row_bytes={longest}")
    return Document(key, [text])
