"""Kinds of tokens, read as code or prose however they are cut, and maps of expert load."""

from pathlib import Path

import numpy as np
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


def by_character(text: str, *, code: bool) -> list[str]:
    names = CODE if code else PROSE
    kinds = token_kinds(BYTES.encode(text), BYTES, code=code)
    return [names[kind] for kind in kinds]


def test_code_by_hand() -> None:
    kinds = by_character(SOURCE, code=True)
    found = {
        part: set(kinds[SOURCE.index(part) : SOURCE.index(part) + len(part)])
        for part in (
            "def",
            "f(",
            "# why",
            "return",
            "12",
            '"two  words"',
        )
    }
    assert found["def"] == found["return"] == {"keyword"}
    assert found["f("] == {"name", "operator"}
    assert found["# why"] == {"comment"}
    assert found["12"] == {"number"}
    assert found['"two  words"'] == {"string"}
    assert kinds[SOURCE.index("\n")] == "space"


def test_prose_by_hand() -> None:
    text = "He said naïve 42!"
    kinds = by_character("He said 42!", code=False)
    expected = "capitalised " * 2 + "space " + "word " * 4 + "space " + "number " * 2
    assert kinds == [*expected.split(), "punctuation"]
    assert len(token_kinds(BYTES.encode(text), BYTES, code=False)) == len(text.encode())


def test_a_token_is_of_the_kind_of_its_first_character_that_is_no_space() -> None:
    ids = BPE.encode(SOURCE)
    kinds = token_kinds(ids, BPE, code=True)
    pieces = [BPE.decode([i]) for i in ids]
    seen = {piece: CODE[kind] for piece, kind in zip(pieces, kinds, strict=True)}
    assert {piece: kind for piece, kind in seen.items() if piece.strip() in ("return", "12")} == {
        next(p for p in seen if p.strip() == "return"): "keyword",
        next(p for p in seen if p.strip() == "12"): "number",
    }
    assert any(piece.startswith(" ") for piece in pieces)


def test_documents_are_read_apart() -> None:
    """An open string ends with its document."""
    first, second = BYTES.encode('x = """open'), BYTES.encode("def f")
    ids = [*first, BYTES.end_of_text, *second]
    kinds = token_kinds(ids, BYTES, code=True)
    assert kinds[len(first)] == NO_TEXT
    assert [CODE[k] for k in kinds[len(first) + 1 :][:3]] == ["keyword"] * 3


@pytest.mark.parametrize("code", [True, False])
@given(ids=st.lists(st.integers(0, 330), max_size=30))
def test_any_ids_have_kinds(code: bool, ids: list[int]) -> None:
    kinds = token_kinds(ids, BPE, code=code)
    assert len(kinds) == len(ids)
    for i, kind in zip(ids, kinds.tolist(), strict=True):
        assert (kind == NO_TEXT) == (i >= BPE.vocab_size or not BPE.token_bytes[i])
        assert kind < len(CODE if code else PROSE)
    assert kinds.dtype == np.int64


def test_maps_are_drawn_without_a_display(tmp_path: Path) -> None:
    loads = torch.randint(9, (5, 2, 4))
    loads[0] = 0  # a kind that does not occur
    draw_over_training(tmp_path / "training.png", [2, 4, 6, 8, 10], loads, ["layer_1", "mtp_1"])
    draw_by_kind(tmp_path / "kinds.png", loads, list("abcde"), ["layer_1", "mtp_1"])
    for name in ("training.png", "kinds.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    shares = relative(torch.tensor([[[2, 6]], [[5, 5]], [[0, 0]]]))
    assert shares.tolist() == [[[0.5, 1.5]], [[1, 1]], [[0, 0]]]
