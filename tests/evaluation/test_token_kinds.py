"""Kinds of tokens, read as code or prose however they are cut, and maps of expert load."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mla_lm.data import Tokenizer
from mla_lm.evaluation.figures import draw_by_kind, draw_over_training, relative
from mla_lm.evaluation.token_kinds import CODE, NO_TEXT, PROSE, token_kinds

END = "<|endoftext|>"
SOURCE = 'def f(x):  # why\n    return x + 12 if x else "two  words"\n'
BYTES = Tokenizer.train([], vocab_size=257, end_of_text=END)
BPE = Tokenizer.train([SOURCE * 9], vocab_size=300, end_of_text=END)


def by_token(text: str, *, code: bool = True, tokenizer: Tokenizer = BYTES) -> list[str]:
    names = CODE if code else PROSE
    kinds = token_kinds(tokenizer.encode(text), tokenizer, code=code)
    return [names[kind] for kind in kinds]


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("def", "keyword"),
        ("return", "keyword"),
        ("f", "name"),
        ("(", "operator"),
        ("# why", "comment"),
        ("12", "number"),
        ('"two  words"', "string"),
        ("\n    ", "space"),
    ],
)
def test_code_by_hand(part: str, kind: str) -> None:
    at = SOURCE.index("f(") if part == "f" else SOURCE.index(part)
    assert set(by_token(SOURCE)[at : at + len(part)]) == {kind}


def test_prose_by_hand() -> None:
    expected = "capitalised " * 2 + "space " + "word " * 6 + "space " + "number " * 2
    assert by_token("He naïve 42!", code=False) == [*expected.split(), "punctuation"]


def test_a_token_is_of_the_kind_of_its_first_character_that_is_no_space() -> None:
    pieces = [BPE.decode([i]) for i in BPE.encode(SOURCE)]
    kinds = dict(zip(pieces, by_token(SOURCE, tokenizer=BPE), strict=True))
    assert kinds[" return"] == "keyword"
    assert kinds[" 12"] == "number"


def test_documents_are_read_apart() -> None:
    """An open string ends with its document."""
    first, second = BYTES.encode('x = """open'), BYTES.encode("def f")
    kinds = token_kinds([*first, BYTES.end_of_text, *second], BYTES, code=True)
    assert kinds[len(first)] == NO_TEXT
    assert [CODE[k] for k in kinds[len(first) + 1 :][:3]] == ["keyword"] * 3


@pytest.mark.parametrize("code", [True, False])
@given(ids=st.lists(st.integers(0, 330), max_size=30))
def test_any_ids_have_kinds(code: bool, ids: list[int]) -> None:
    for i, kind in zip(ids, token_kinds(ids, BPE, code=code).tolist(), strict=True):
        assert (kind == NO_TEXT) == (i >= BPE.vocab_size or not BPE.token_bytes[i])
        assert kind < len(CODE if code else PROSE)


def test_maps_are_drawn_without_a_display(tmp_path: Path) -> None:
    loads = torch.randint(9, (5, 2, 4))
    loads[0] = 0  # a kind that does not occur
    draw_over_training(tmp_path / "training.png", [2, 4, 6, 8, 10], loads, ["layer_1", "mtp_1"])
    draw_by_kind(tmp_path / "kinds.png", loads, list("abcde"), ["layer_1", "mtp_1"])
    for name in ("training.png", "kinds.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    shares = relative(torch.tensor([[[2, 6]], [[5, 5]], [[0, 0]]]))
    assert shares.tolist() == [[[0.5, 1.5]], [[1, 1]], [[0, 0]]]
