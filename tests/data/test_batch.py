"""Which ids count, and which document they belong to."""

import pytest
import torch
from torch import Tensor

from mla_lm.data import Tokenizer
from mla_lm.data.batch import IGNORED, Annotator
from tests.data.conftest import END_OF_TEXT, corpus_config


def ids_of(tokenizer: Tokenizer, text: str) -> Tensor:
    """(1, N) ids; `|` stands for the end of a text."""
    ids = [tokenizer.end_of_text if c == "|" else tokenizer.encode(c)[0] for c in text]
    return torch.tensor([ids])


def test_documents_are_numbered_from_their_end_of_text(tokenizer: Tokenizer) -> None:
    annotate = Annotator(corpus_config("text", mask_documents=True), tokenizer)
    batch = annotate(ids_of(tokenizer, "ab|cd||e"))
    assert batch.documents is not None
    assert batch.documents.tolist() == [[0, 0, 1, 1, 1, 2, 3, 3]]
    assert batch.input_documents is not None
    assert batch.input_documents.tolist() == [[0, 0, 1, 1, 1, 2, 3]]
    assert torch.equal(batch.labels, batch.tokens)


def test_without_masking_every_id_counts(tokenizer: Tokenizer) -> None:
    batch = Annotator(corpus_config("text"), tokenizer)(ids_of(tokenizer, "ab|c=d;"))
    assert batch.documents is batch.input_documents is batch.counted is batch.input_counted is None
    assert torch.equal(batch.labels, batch.tokens)
    assert torch.equal(batch.inputs, batch.tokens[:, :-1])


@pytest.mark.parametrize(
    ("text", "answers"),
    [("..aXbYa=X;b=Y;", "        X   Y "), ("|ab=ab;", "    ab "), ("...=;x", "      ")],
)
def test_synthetic_answers_count_alone(text: str, answers: str) -> None:
    tokenizer = Tokenizer.train((), vocab_size=257, end_of_text=END_OF_TEXT)
    batch = Annotator(corpus_config("synthetic"), tokenizer)(ids_of(tokenizer, text))
    graded = batch.labels[0] != IGNORED
    assert "".join(c if k else " " for c, k in zip(text, graded, strict=True)) == answers
    assert torch.equal(batch.labels[0][graded], batch.tokens[0][graded])
    assert batch.counted is not None
    assert batch.counted[0].tolist() == [c != "." for c in text]
