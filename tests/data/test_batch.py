"""Which ids count, and which document they belong to."""

import pytest
import torch
from torch import Tensor

from mla_lm.data import Annotator, EvalLoader, Tokenizer, prepare
from mla_lm.data.batch import IGNORED
from tests.data.conftest import MakeConfig


def written(tokenizer: Tokenizer, text: str) -> Tensor:
    """(1, N) ids; `|` stands for the end of a text."""
    ids = [tokenizer.end_of_text if c == "|" else tokenizer.encode(c)[0] for c in text]
    return torch.tensor([ids])


def test_documents_are_numbered_from_their_end_of_text(
    data_config: MakeConfig, tokenizer: Tokenizer
) -> None:
    annotate = Annotator(data_config("x", mask_documents=True), tokenizer)
    batch = annotate(written(tokenizer, "ab|cd||e"))
    assert batch.documents is not None
    assert batch.documents.tolist() == [[0, 0, 1, 1, 1, 2, 3, 3]]
    assert batch.input_documents is not None
    assert batch.input_documents.tolist() == [[0, 0, 1, 1, 1, 2, 3]]
    assert torch.equal(batch.labels, batch.tokens)


def test_without_masking_every_id_counts(data_config: MakeConfig, tokenizer: Tokenizer) -> None:
    batch = Annotator(data_config("x"), tokenizer)(written(tokenizer, "ab|c=d;"))
    assert batch.documents is None
    assert batch.input_documents is None
    assert torch.equal(batch.labels, batch.tokens)
    assert torch.equal(batch.inputs, batch.tokens[:, :-1])


@pytest.mark.parametrize(
    ("text", "answers"),
    [("aXbYa=X;b=Y;", "      X   Y "), ("|ab=ab;", "    ab "), ("...=;x", "      ")],
)
def test_synthetic_answers_count_alone(data_config: MakeConfig, text: str, answers: str) -> None:
    tokenizer = Tokenizer.train((), vocab_size=257, end_of_text="<|endoftext|>")
    annotate = Annotator(data_config(kind="synthetic"), tokenizer)
    batch = annotate(written(tokenizer, text))
    kept = batch.labels[0] != IGNORED
    assert "".join(c if k else " " for c, k in zip(text, kept.tolist(), strict=True)) == answers
    assert torch.equal(batch.labels[0][kept], batch.tokens[0][kept])


@pytest.mark.parametrize("task", ["recall", "copying", "induction"])
def test_every_window_of_a_synthetic_corpus_is_one_document(
    data_config: MakeConfig, task: str
) -> None:
    cfg = data_config(kind="synthetic", task=task, n_documents=50, seq_len=41)
    data = prepare(cfg)
    annotate = Annotator(cfg, data.tokenizer)
    for tokens in EvalLoader(data.train, seq_len=41, batch_size=7):
        batch = annotate(tokens)
        assert (tokens[:, 0] == data.tokenizer.end_of_text).all()
        assert (tokens[:, 1:-1] != data.tokenizer.end_of_text).all()
        for labels in batch.labels.tolist():
            text = data.tokenizer.decode([i for i in labels if i != IGNORED])
            assert text
            assert set(text).isdisjoint("=;.")
