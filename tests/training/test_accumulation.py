"""A step of eight micro-batches has the losses and gradients of one batch, whatever rows count."""

from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mla_lm.config import RunConfig
from mla_lm.data.corpora.synthetic import FILLER
from mla_lm.data.loader import TrainLoader
from mla_lm.training.module import LanguageModel
from tests.conftest import TINY, load_config
from tests.training.small import LENGTH, RECORD, TOKENIZER, Case, trainer

ROWS = 8
LOGGED = "trainer.log_every_n_steps=1"
MASKED = (LOGGED, "data.mask_documents=true", "model.mtp_depth=2", f"data.seq_len={LENGTH}")


def documents() -> NDArray[Any]:
    """Rows of one document, and rows of documents of one character, without MTP targets."""
    ids = np.random.default_rng(0).integers(97, 110, size=ROWS * LENGTH + 1)
    for row in (0, 3, 4):
        ids[row * LENGTH : (row + 1) * LENGTH + 1 : 2] = TOKENIZER.end_of_text
    return ids


def answers() -> NDArray[Any]:
    """Padded rows whose answers are of 0 to 14 characters: the first row has no target."""
    text = "".join(f"{FILLER * 4}abcd={'x' * 2 * n};".ljust(LENGTH, "b") for n in range(ROWS))
    return np.array(TOKENIZER.encode(f"{text}b"))


class Gradients(L.Callback):
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.found = {n: p.grad.clone() for n, p in pl_module.named_parameters()}


def step(cfg: RunConfig, ids: NDArray[Any], rows: int) -> dict[str, Tensor]:
    """What one optimizer step of all rows logs, and its gradients."""
    torch.manual_seed(0)
    gradients, n = Gradients(), ROWS // rows
    loader = TrainLoader(ids, seq_len=LENGTH, batch_size=rows, accumulate=n, seed=1)
    by_lightning = trainer(1, gradients, accumulate_grad_batches=n, log_every_n_steps=1)
    by_lightning.fit(LanguageModel(cfg, TOKENIZER, RECORD), loader, loader)
    logged = by_lightning.callback_metrics
    return {**gradients.found, **{n: x for n, x in logged.items() if n.startswith("train/")}}


def differences(cfg: RunConfig, ids: NDArray[Any], rows: int) -> list[str]:
    found, wanted = step(cfg, ids, rows), step(cfg, ids, ROWS)
    assert {"train/loss", "train/ce", "train/mtp", "train/bpb"} <= wanted.keys() == found.keys()
    close = {n: torch.allclose(found[n], wanted[n], rtol=1e-4, atol=1e-6) for n in wanted}
    return [name for name in wanted if not close[name]]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(
    ("cfg", "ids"),
    [
        (load_config([*TINY, *MASKED]), documents()),
        (Case(mtp_depth=2).config(LOGGED, "balance=sequence"), answers()),
    ],
    ids=["documents", "answers"],
)
def test_accumulation_changes_nothing(
    cfg: RunConfig, ids: NDArray[Any], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert differences(cfg, ids, rows) == []
    rest = TrainLoader.rest_of_step
    monkeypatch.setattr(TrainLoader, "rest_of_step", lambda self: rest(self)[:0])
    assert len(differences(cfg, ids, rows)) > 9  # a mean over other targets than the step's
