"""A run resumed in a validation must be able to train: FSDP2 could not after inference mode."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mla_lm.machine import Hardware
from mla_lm.training.module import LanguageModel
from mla_lm.training.trainer import trainer_of
from tests.training.small import RECORD, STEPS, TOKENIZER, Case, fit, micro_batches


def test_a_validation_makes_no_inference_tensors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    modes: list[bool] = []
    honest = LanguageModel.validation_step

    def spy(self: LanguageModel, tokens: Tensor, batch_idx: int) -> None:
        modes.append(torch.is_inference_mode_enabled())
        honest(self, tokens, batch_idx)

    monkeypatch.setattr(LanguageModel, "validation_step", spy)
    cfg = Case().config(f"run_dir={tmp_path}")
    here = Hardware("cpu", "32-true", {})
    module = LanguageModel(cfg, TOKENIZER, RECORD)
    fit(trainer_of(cfg, here, loggers=[], callbacks=[]), module, micro_batches(Case()))
    assert len(modes) >= STEPS
    assert not any(modes)
