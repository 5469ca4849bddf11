"""Question files: JSONL, plain or .gz, of one of four shapes; the first line tells which."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, computed_field, model_validator
from pydantic_core import from_json

from mla_lm.errors import UserError
from mla_lm.files import LONGEST, read_lines

Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=2)]


class Question(BaseModel):
    """One line; unknown keys are ignored.

    `task` are keys of a task of lm-evaluation-harness, `metrics` those of its metrics to report.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")
    task: ClassVar[dict[str, Any]]
    metrics: ClassVar[tuple[str, ...]] = ("acc",)

    @property
    def n_choices(self) -> int:
        """0 where there is nothing to choose."""
        return len(getattr(self, self.task.get("doc_to_choice", ""), ()))

    @model_validator(mode="after")
    def _gold_is_a_choice(self) -> Self:
        if not 0 <= getattr(self, "gold", 0) < max(1, self.n_choices):
            raise ValueError(f"gold must be one of the {self.n_choices} choices, from 0")
        return self


class MultipleChoice(Question):
    """Which choice follows the query?"""

    query: str
    choices: Texts
    gold: int
    task = {
        "output_type": "multiple_choice",
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
    }
    metrics = ("acc", "acc_norm")


class Schema(Question):
    """Which context does the continuation follow?"""

    context_options: Texts
    continuation: Text
    gold: int
    task = {
        "output_type": "multiple_choice",
        "doc_to_text": "gold",  # the harness's convention for several contexts
        "doc_to_choice": "context_options",
        "doc_to_target": "continuation",
    }


class Continuation(Question):
    """Does greedy decoding give the continuation, and how likely is it?"""

    context: str
    continuation: Text
    task = {"output_type": "loglikelihood", "doc_to_text": "context"}
    metrics = ("acc", "perplexity")


class MinimalPair(Question):
    """Which of two sentences is acceptable (BLiMP, arXiv 1912.00582)?"""

    sentence_good: Text
    sentence_bad: Text
    paradigm: str = ""
    task = {
        "output_type": "multiple_choice",
        "doc_to_text": lambda _: "",
        "doc_to_choice": "choices",
        "doc_to_target": 0,
        "target_delimiter": "",
    }

    @computed_field  # type: ignore[prop-decorator]
    @property
    def choices(self) -> list[str]:
        return [self.sentence_good, self.sentence_bad]


LONGEST_LINE = 2**24  # bytes
SHAPES: dict[str, type[Question]] = {  # by the key that tells them
    "query": MultipleChoice,
    "context_options": Schema,
    "context": Continuation,
    "sentence_good": MinimalPair,
}


def read_questions(path: Path, *, limit: int | None = None) -> list[Question]:
    """The first `limit` questions of a file; UserError names the file and line of a bad one."""
    questions: list[Question] = []
    n_bytes, lines = 0, read_lines(path, longest=LONGEST_LINE, rule=f"{LONGEST_LINE:,} bytes")
    for number, line in enumerate(lines, start=1):
        if len(questions) == limit:
            break
        if (n_bytes := n_bytes + len(line)) > LONGEST:
            raise UserError(f"{path}:{number}: more than {LONGEST:,} bytes of questions")
        if line.strip():
            try:
                shape = type(questions[0]) if questions else _shape_of(line)
                questions.append(shape.model_validate_json(line))
            except ValidationError as error:
                first = error.errors()[0]
                key = "".join(f"{part}: " for part in first["loc"])
                raise UserError(f"{path}:{number}: {key}{first['msg']}") from None
            except ValueError as error:
                raise UserError(f"{path}:{number}: {error}") from None
    if not questions:
        raise UserError(f"{path}: holds no questions")
    return questions


def _shape_of(line: bytes) -> type[Question]:
    keys = from_json(line)
    for key, shape in SHAPES.items():
        if isinstance(keys, dict) and key in keys:
            return shape
    raise ValueError(f"must have one of the keys {', '.join(SHAPES)}")
