"""A document separator has no bytes: its nats are in no figure of a text, wherever it is made."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mla_lm.data.batch import Annotator
from mla_lm.data.loader import TrainLoader
from mla_lm.evaluation.language_model import by_position, evaluate, sliding_loss
from mla_lm.training.module import LanguageModel
from tests.conftest import TINY, load_config, randomized
from tests.training.small import LENGTH, RECORD, TOKENIZER, trainer

PLAIN = ("model/ffn=dense", "balance=none", "model.mtp_depth=0", "optim.lr=1e-38")


def test_a_separator_is_in_no_figure_of_a_text() -> None:
    """In training, its validation, an evaluation, by position, and over a sliding context."""
    logged = ("trainer.log_every_n_steps=1", f"data.seq_len={LENGTH}")
    cfg = load_config([*TINY, *PLAIN, *logged])
    module = LanguageModel(cfg, TOKENIZER, RECORD)
    model = randomized(module.model)
    ids = np.random.default_rng(0).integers(97, 110, size=LENGTH + 1)
    ids[[0, 3, 4, 11, LENGTH]] = TOKENIZER.end_of_text
    row = torch.from_numpy(ids)[None]
    with torch.no_grad():
        nats = F.cross_entropy(model(row[:, :-1]).logits.mT, row[:, 1:], reduction="none")[0]
    own = row[0, 1:] != TOKENIZER.end_of_text
    loss = float(nats[own].mean())
    assert abs(loss - float(nats.mean())) > 0.03

    loader = TrainLoader(ids, seq_len=LENGTH, batch_size=1, accumulate=1, seed=1)
    by_lightning = trainer(1, log_every_n_steps=1, limit_val_batches=1.0)
    by_lightning.fit(module, loader, loader)
    lengths = torch.from_numpy(TOKENIZER.byte_lengths)
    found = evaluate(model.eval(), [row], lengths, Annotator(cfg.data, TOKENIZER))
    sliding = sliding_loss(model, ids, TOKENIZER, stride=LENGTH)
    figures = {**by_lightning.callback_metrics, **sliding}
    figures |= {f"eval/{name}": figure for name, figure in found.metrics.items()}
    for name in ("train/bpb", "val/bpb", "eval/val/bpb", "sliding/bpb"):  # every token is a byte
        assert float(figures[name]) == pytest.approx(loss / math.log(2), rel=1e-5), name
    for name in ("train/text_loss", "val/loss", "eval/val/loss", "sliding/loss"):
        assert float(figures[name]) == pytest.approx(loss, rel=1e-5), name
    assert float(figures["train/ce"]) == pytest.approx(float(nats.mean()), rel=1e-5)
    for first, last, mean in by_position(found.positions):
        part = slice(first - 1, last)
        assert mean == pytest.approx(float(nats[part][own[part]].mean()), rel=1e-5)
