"""Bits per byte are those of the text, whatever the rows, the batches and their order."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mla_lm.data.batch import Annotator
from mla_lm.data.loader import EvalLoader
from mla_lm.evaluation.language_model import evaluate
from mla_lm.evaluation.positions import sliding_loss
from tests.conftest import ATTENTION, tiny_config
from tests.generation.conftest import random_model
from tests.interop.random_runs import byte_tokenizer

TOKENIZER = byte_tokenizer()
BYTE_LENGTHS = torch.from_numpy(TOKENIZER.byte_lengths)
LENGTH = 8  # tokens of a document, so that rows of 8, 16 and 32 cut none
N_DOCUMENTS = 13


def stream(seed: int, order: list[int] | None = None) -> NDArray[np.int64]:
    """Documents of one length, each behind the separator, and one more separator."""
    rows = np.random.default_rng(seed).integers(0, 256, (N_DOCUMENTS, LENGTH))
    rows[:, 0] = TOKENIZER.end_of_text
    flat = (rows if order is None else rows[order]).flatten()
    return np.append(flat, TOKENIZER.end_of_text)


def bits_per_byte(
    attention: tuple[str, ...], ids: NDArray[np.int64], *, seq_len: int, batch_size: int, seed: int
) -> float:
    batches = list(EvalLoader(ids, seq_len=seq_len, batch_size=batch_size))
    np.random.default_rng(seed).shuffle(batches)  # type: ignore[arg-type]
    annotate = Annotator(tiny_config("data.mask_documents=true").data, TOKENIZER)
    return evaluate(random_model(*attention), batches, BYTE_LENGTHS, annotate).metrics["val/bpb"]


@given(
    attention=st.sampled_from(list(ATTENTION.values())),
    seq_len=st.sampled_from([LENGTH, 2 * LENGTH, 4 * LENGTH]),
    batch_size=st.integers(1, 15),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_neither_rows_nor_batches_nor_their_order_matter(
    attention: tuple[str, ...], seq_len: int, batch_size: int, seed: int
) -> None:
    ids = stream(seed)
    one = bits_per_byte(attention, ids, seq_len=LENGTH, batch_size=1, seed=0)
    other = bits_per_byte(attention, ids, seq_len=seq_len, batch_size=batch_size, seed=seed)
    assert other == pytest.approx(one, rel=2e-6)


@given(order=st.permutations(range(N_DOCUMENTS)), stride=st.integers(1, 24))
@settings(max_examples=20)
def test_a_sliding_context_does_not_see_the_order_of_documents(
    order: list[int], stride: int
) -> None:
    model, separator = random_model(), TOKENIZER.end_of_text
    one, other = (
        sliding_loss(model, ids, TOKENIZER, stride=s, separator=separator)["sliding/bpb"]
        for ids, s in ((stream(0), 1), (stream(0, order), stride))
    )
    assert other == pytest.approx(one, rel=2e-6)
