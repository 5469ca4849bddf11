"""MTP modules stay as they are once their loss has no weight, though balance losses reach them."""

import pytest
import torch

from mla_lm.training.callbacks import LossSpikes
from mla_lm.training.module import LanguageModel
from tests.training.faults import States, changed
from tests.training.small import RECORD, STEPS, TOKENIZER, Case, fit, micro_batches, trainer


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_mtp_modules_without_weight_are_left_alone(kind: str) -> None:
    torch.manual_seed(0)
    loss = ("loss.mtp_switch=0.34", "loss.mtp_final_weight=0.0")
    balance = ("balance.sequence_loss_weight=0.1", f"optim={kind}", "optim.lr=0.01")
    module = LanguageModel(Case().config(*loss, *balance), TOKENIZER, RECORD)
    states = States()
    fit(trainer(STEPS, LossSpikes(5, 6.0), states), module, micro_batches(Case()))
    _, weighted, unweighted = states.seen
    names = [name for name in weighted if name.startswith("model.mtp.")]
    assert any(name.endswith("e_score_correction_bias") for name in names)
    of_mtp = [name for name in changed(states.seen[0], weighted) if name in names]
    assert len(of_mtp) > len(names) / 2
    found = changed(weighted, unweighted)
    assert "model.embed.weight" in found
    assert not set(found) & set(names)
