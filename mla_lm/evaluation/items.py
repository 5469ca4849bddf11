"""Questions from JSONL files, and the texts whose likelihoods answer them.

Four shapes, told by their keys: `{query, choices, gold}`, `{context, continuation}`,
`{context_options, continuation, gold}` and the minimal pair `{sentence_good, sentence_bad}`.
Knows no model.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError

from mla_lm.errors import UserError

Text = Annotated[str, Field(min_length=1)]


class Pair(NamedTuple):
    """How likely is `continuation` behind `context`?"""

    context: str
    continuation: str


class Item(BaseModel):
    """A question of some shape; keys that its shape does not have are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def pairs(self, delimiter: str) -> list[Pair]:
        """What is to be scored, one pair for each possible answer."""
        raise NotImplementedError

    @property
    def gold_answer(self) -> int | None:
        """The right one of them; None where there is only one."""
        return None


class MultipleChoice(Item):
    """Which choice follows the query?"""

    query: StrictStr
    choices: Annotated[tuple[Text, ...], Field(min_length=2)]
    gold: StrictInt

    def pairs(self, delimiter: str) -> list[Pair]:
        return [Pair(self.query, delimiter + choice) for choice in self.choices]

    @property
    def gold_answer(self) -> int:
        return self.gold


class Schema(Item):
    """Behind which context does the continuation come?"""

    context_options: Annotated[tuple[Text, ...], Field(min_length=2)]
    continuation: Text
    gold: StrictInt

    def pairs(self, delimiter: str) -> list[Pair]:
        return [Pair(context, delimiter + self.continuation) for context in self.context_options]

    @property
    def gold_answer(self) -> int:
        return self.gold


class Continuation(Item):
    """Is the continuation what the model would say?"""

    context: StrictStr
    continuation: Text

    def pairs(self, delimiter: str) -> list[Pair]:
        return [Pair(self.context, delimiter + self.continuation)]


class MinimalPair(Item):
    """Which of two sentences is acceptable (BLiMP, arXiv 1912.00582)?"""

    sentence_good: Text
    sentence_bad: Text
    paradigm: StrictStr = ""

    def pairs(self, delimiter: str) -> list[Pair]:
        return [Pair("", self.sentence_good), Pair("", self.sentence_bad)]

    @property
    def gold_answer(self) -> int:
        return 0


SHAPES: tuple[type[Item], ...] = (MultipleChoice, Schema, Continuation, MinimalPair)


def read_items(path: Path, *, limit: int | None = None) -> list[Item]:
    """The items of a JSONL file, plain or .gz, all of one shape.

    Raises UserError naming file and line of what is none, and for a file without items.
    """
    items: list[Item] = []
    for number, line in enumerate(_lines(path), start=1):
        if limit is not None and len(items) == limit:
            break
        if line.strip():
            shape = type(items[0]) if items else None
            items.append(_item(line, shape, where=f"{path}:{number}"))
    if not items:
        raise UserError(f"{path}: holds no items")
    return items


def _lines(path: Path) -> Iterator[str]:
    opened: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            yield from file
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason})") from None


def _item(line: str, shape: type[Item] | None, *, where: str) -> Item:
    try:
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError("not an object")
        found = shape or _shape_of(values)
        item = found.model_validate(values)
        for pair in item.pairs(""):
            (pair.context + pair.continuation).encode()
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{where}: {key}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: no item ({error})") from None
    gold, n_answers = item.gold_answer, len(item.pairs(""))
    if gold is not None and not 0 <= gold < n_answers:
        raise UserError(f"{where}: gold: must be one of the {n_answers} answers, from 0")
    return item


def _shape_of(values: dict[str, Any]) -> type[Item]:
    for shape in SHAPES:
        required = {name for name, field in shape.model_fields.items() if field.is_required()}
        if required <= values.keys():
            return shape
    raise ValueError(f"its keys {sorted(values)} are those of no known shape")


def all_pairs(items: Sequence[Item], delimiter: str) -> tuple[list[Pair], list[int]]:
    """The pairs of several items in a row, and how many each item has."""
    by_item = [item.pairs(delimiter) for item in items]
    return [pair for pairs in by_item for pair in pairs], list(map(len, by_item))
