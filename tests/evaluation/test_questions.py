"""Question files: four shapes, their metrics by hand, and what is wrong with a line."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest

from mla_lm.config import QuestionFile
from mla_lm.errors import UserError
from mla_lm.evaluation import harness, questions
from mla_lm.evaluation.questions import read_questions
from mla_lm.evaluation.results import metrics_table
from mla_lm.evaluation.scoring import Request, Score
from tests.conftest import one_line
from tests.evaluation.conftest import scored
from tests.generation.conftest import random_model
from tests.interop.random_runs import byte_tokenizer

CHOICE = {"query": "Q", "choices": ["aa", "bbbbbb", "c"], "gold": 2, "note": "left alone"}
LAST = {"context": "It was", "continuation": "late"}
SCHEMA = {"context_options": ["one", "two"], "continuation": "end", "gold": 0}
PAIR = {"sentence_good": "good", "sentence_bad": "bad", "paradigm": "x"}
WORSE = {"sentence_good": "good", "sentence_bad": "worse", "paradigm": "y"}
LIKELIHOODS = {
    "Q aa": -3.0,
    "Q bbbbbb": -4.0,
    "Q c": -2.0,
    "It was late": -0.5,
    "It was early": -3.0,
    "one end": -2.0,
    "two end": -1.0,
    "good": -1.0,
    "bad": -2.0,
    "worse": -0.5,
}
METRICS = {
    "the likeliest choice, and by length": (
        [CHOICE, CHOICE | {"gold": 1}],
        {"acc": 0.5, "acc_stderr": 0.5, "acc_norm": 0.5, "chance": 1 / 3, "n_items": 2},
    ),
    "by length": ([CHOICE | {"gold": 1}], {"acc": 0.0, "acc_norm": 1.0}),
    "greedy continuations": (
        [LAST, LAST | {"continuation": "early"}],
        {"acc": 0.5, "perplexity": math.exp(3.5 / len(" late early")), "chance": 0.0},
    ),
    "the likelier context": (
        [SCHEMA, SCHEMA | {"gold": 1}, SCHEMA | {"gold": 1}],
        {"acc": 2 / 3, "chance": 0.5},
    ),
    "pairs by paradigm": (
        [PAIR, WORSE, PAIR | {"paradigm": "y"}],
        {
            "acc": 2 / 3,
            "acc_stderr": math.sqrt(2 / 9 / 2),
            "acc/x": 1.0,
            "acc/y": 0.5,
            "acc/y_stderr": 0.5,
        },
    ),
}


def write(path: Path, *lines: object) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n")
    return path


@pytest.fixture
def _known_likelihoods(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's are replaced by `LIKELIHOODS` of the whole text; above -1 it is greedy."""

    def score(model: Any, requests: list[Request]) -> list[Score]:
        decode = byte_tokenizer().decode
        likely = [LIKELIHOODS[decode([*r.context[1:], *r.continuation])] for r in requests]
        return [Score(value, value > -1) for value in likely]

    monkeypatch.setattr(harness, "score", score)


@pytest.mark.parametrize(("lines", "expected"), METRICS.values(), ids=METRICS)
@pytest.mark.usefixtures("_known_likelihoods")
def test_metrics_by_hand(
    lines: list[dict[str, Any]], expected: dict[str, float], tmp_path: Path
) -> None:
    found = scored(random_model(), write(tmp_path / "x.jsonl", *lines))
    assert {name: found[f"x/{name}"] for name in expected} == pytest.approx(expected)


@pytest.mark.usefixtures("_known_likelihoods")
def test_a_named_file_has_its_delimiter(tmp_path: Path) -> None:
    write(tmp_path / "file.jsonl", SCHEMA | {"continuation": "d"})
    files = {"mine": QuestionFile(path="file.jsonl", delimiter=" en")}
    found = scored(random_model(), "mine", tasks_dir=str(tmp_path), question_files=files)
    assert found["mine/acc"] == 0.0
    assert len(found["mine/sha256"]) == 64


def test_compressed_files_blank_lines_and_a_limit(tmp_path: Path) -> None:
    text = "\n".join([json.dumps(CHOICE), "", json.dumps(CHOICE | {"gold": 0}), "bad"])
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(text.encode("utf-8-sig")))
    assert len(read_questions(tmp_path / "x.jsonl.gz", limit=2)) == 2
    found = scored(random_model(), tmp_path / "x.jsonl.gz", limit=1)
    assert found["x/n_items"] == 1


BAD: dict[str, tuple[object, str]] = {
    "no JSON": ("{", "Invalid JSON"),
    "no object": ("[1]", "Input should be an object"),
    "another shape": (LAST, "query: Field required"),
    "gold too large": (CHOICE | {"gold": 3}, "gold must be one of the 3 choices"),
    "gold negative": (CHOICE | {"gold": -1}, "gold must be one of the 3 choices"),
    "gold no number": (CHOICE | {"gold": "1"}, "gold: "),
    "one choice": (CHOICE | {"choices": ["a"]}, "choices: "),
    "empty choice": (CHOICE | {"choices": ["a", ""]}, "choices: 1: "),
    "no Unicode": (CHOICE | {"query": "\ud800"}, "Invalid JSON"),
}


@pytest.mark.parametrize(("line", "said"), BAD.values(), ids=BAD)
def test_a_malformed_line_is_named(line: object, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", CHOICE, line)
    found = one_line(lambda: read_questions(path))
    assert found.startswith(f"{path}:2: ")
    assert said in found


def test_files_without_questions_are_named(tmp_path: Path) -> None:
    flipped = bytearray(gzip.compress(b"abcdefgh" * 999))
    flipped[20] ^= 255
    contents = {
        "a.jsonl": (b"\n\n", "holds no questions"),
        "b.jsonl": (b'{"question": "x"}', r"b.jsonl:1: must have one of the keys query, "),
        "c.jsonl": (b"[" * 100_000, r"c.jsonl:1: "),
        "d.jsonl": (b"\xff\xfe", "d.jsonl:1: "),
        "e.jsonl.gz": (gzip.compress(b"x" * 999)[:-9], "line 1: damaged gzip"),
        "f.jsonl.gz": (bytes(flipped), "line 1: damaged gzip"),
        "long.jsonl.gz": (gzip.compress(b" " * 2**24 + b"x"), "line 1: longer than 16,777,216"),
        "missing.jsonl": (None, "cannot be read"),
    }
    for name, (content, said) in contents.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=said):
            read_questions(tmp_path / name)


def test_more_questions_than_fit_into_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "x.jsonl", *[CHOICE] * 9)
    monkeypatch.setattr(questions, "LONGEST", path.stat().st_size - 9)
    assert one_line(lambda: read_questions(path)).startswith(f"{path}:9: more than ")


@pytest.mark.usefixtures("_known_likelihoods")
def test_names_of_data_are_shown_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither as rich's markup, which `[/y]` breaks, nor as its emoji."""
    name = "x[/y] [b] :smile:"
    found = scored(random_model(), write(tmp_path / "x.jsonl", PAIR | {"paradigm": name}))
    metrics_table(found, [])
    assert f"│ x/acc/{name} " in capsys.readouterr().out
