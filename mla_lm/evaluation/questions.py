"""Question files: JSONL (plain or .gz) of one of four shapes, as tasks of lm-evaluation-harness.

The keys of the first line tell the shape: `{query, choices, gold}`, `{context, continuation}`,
`{context_options, continuation, gold}` or the minimal pair `{sentence_good, sentence_bad}`.
"""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from mla_lm.errors import UserError

Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=2)]


class Question(BaseModel):
    """One line; unknown keys are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")
    metrics: ClassVar[tuple[str, ...]] = ("acc",)

    @property
    def n_choices(self) -> int:
        raise NotImplementedError

    @classmethod
    def task(cls, delimiter: str) -> dict[str, Any]:
        """The keys of the harness's task that build the texts to score."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _gold_is_a_choice(self) -> Self:
        if not 0 <= getattr(self, "gold", 0) < self.n_choices:
            raise ValueError(f"gold must be one of the {self.n_choices} choices, from 0")
        return self


class MultipleChoice(Question):
    """Which choice follows the query?"""

    query: str
    choices: Texts
    gold: int
    metrics = ("acc", "acc_norm")

    @property
    def n_choices(self) -> int:
        return len(self.choices)

    @classmethod
    def task(cls, delimiter: str) -> dict[str, Any]:
        keys = {"doc_to_text": "query", "doc_to_choice": "choices", "doc_to_target": "gold"}
        return {"output_type": "multiple_choice", "target_delimiter": delimiter, **keys}


class Schema(Question):
    """Which context does the continuation follow?"""

    context_options: Texts
    continuation: Text
    gold: int

    @property
    def n_choices(self) -> int:
        return len(self.context_options)

    @classmethod
    def task(cls, delimiter: str) -> dict[str, Any]:
        keys = {"doc_to_choice": "context_options", "doc_to_target": "continuation"}
        texts = {"doc_to_text": "gold", **keys}  # the harness's convention for several contexts
        return {"output_type": "multiple_choice", "target_delimiter": delimiter, **texts}


class Continuation(Question):
    """Does greedy decoding give the continuation, and how likely is it?"""

    context: str
    continuation: Text
    metrics = ("acc", "perplexity")

    @property
    def n_choices(self) -> int:
        return 1

    @classmethod
    def task(cls, delimiter: str) -> dict[str, Any]:
        target = {"doc_to_target": lambda doc: delimiter + doc["continuation"]}
        return {"output_type": "loglikelihood", "doc_to_text": "context", **target}


class MinimalPair(Question):
    """Which of two sentences is acceptable (BLiMP, arXiv 1912.00582)?"""

    sentence_good: Text
    sentence_bad: Text
    paradigm: str = ""

    @property
    def n_choices(self) -> int:
        return 2

    @classmethod
    def task(cls, delimiter: str) -> dict[str, Any]:
        choices = {"doc_to_choice": lambda doc: [doc["sentence_good"], doc["sentence_bad"]]}
        texts = {"doc_to_text": lambda _: "", "doc_to_target": 0, **choices}
        return {"output_type": "multiple_choice", "target_delimiter": "", **texts}


SHAPES: tuple[type[Question], ...] = (MultipleChoice, Schema, Continuation, MinimalPair)


def read_questions(path: Path, *, limit: int | None = None) -> list[Question]:
    """The first `limit` questions of a file; UserError names the file and line of a bad one."""
    questions: list[Question] = []
    for number, line in enumerate(_lines(path), start=1):
        if len(questions) == limit:
            break
        if line.strip():
            where = f"{path}:{number}"
            shape = type(questions[0]) if questions else _shape_of(line, where)
            try:
                questions.append(shape.model_validate_json(line))
            except ValidationError as error:
                first = error.errors()[0]
                keys = ".".join(map(str, first["loc"])) or "question"
                raise UserError(f"{where}: {keys}: {first['msg']}") from None
    if not questions:
        raise UserError(f"{path}: holds no questions")
    return questions


def _lines(path: Path) -> Iterator[str]:
    opened: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            yield from file
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason})") from None


def _shape_of(line: str, where: str) -> type[Question]:
    required = {
        shape: {key for key, field in shape.model_fields.items() if field.is_required()}
        for shape in SHAPES
    }
    try:
        values = from_json(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    for shape, keys in required.items():
        if isinstance(values, dict) and keys <= values.keys():
            return shape
    known = "; ".join(", ".join(sorted(keys)) for keys in required.values())
    raise UserError(f"{where}: must be an object with the keys of a question: {known}")
