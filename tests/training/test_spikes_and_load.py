"""Skipped steps, loss spikes and idle experts are named; the load of the experts is drawn."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mla_lm.errors import UserError
from mla_lm.training.callbacks import LossSpikes
from mla_lm.training.module import LanguageModel
from mla_lm.training.plots import COLUMNS, ExpertLoad
from tests.training.small import RECORD, TOKENIZER, Case, fit, micro_batches, trainer


class Losses(LanguageModel):
    """The loss of some steps is not a number, of others it is high."""

    bad: tuple[int, ...] = ()
    high: tuple[int, ...] = ()

    def training_step(self, tokens: Tensor, batch_idx: int) -> Tensor:
        loss = super().training_step(tokens, batch_idx)
        factor = torch.nan if self.global_step in self.bad else 1.0
        more = 100 if self.global_step in self.high else 0
        self.micro_losses[-1] = self.micro_losses[-1] * factor + more
        return loss * factor


def train(steps: int, spikes: LossSpikes, **losses: tuple[int, ...]) -> None:
    case = Case()
    module = Losses(case.config("trainer.max_skipped_steps=3"), TOKENIZER, RECORD)
    vars(module).update(losses)
    fit(trainer(steps, spikes), module, micro_batches(case))


def test_skipped_steps_and_spikes_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    spikes = LossSpikes(window=5, threshold=1.5)
    train(10, spikes, bad=(4,), high=(1, 8))
    skipped, spike = [line for line in capsys.readouterr().out.splitlines() if "step" in line]
    assert skipped == "step 5 skipped: the gradient is not finite"
    assert spike.startswith("step 9: loss 10")  # the first was before the window was full
    assert "is a spike" in spike
    assert all(loss == loss for loss in spikes.losses)


def test_many_skipped_in_a_row_end_the_run_in_one_line() -> None:
    with pytest.raises(UserError, match=r"stopped at step 7: trainer.max_skipped_steps=3") as said:
        train(20, LossSpikes(5, 6.0), bad=(1, 2, 4, 5, 6, 7))
    assert "\n" not in str(said.value)


def watch(
    callback: ExpertLoad, loads: list[Tensor | None], *, start: int = 0, total: int = 10
) -> list[str]:
    """Steps of two layers by hand; the lines that were printed."""
    printed: list[str] = []
    module: Any = LanguageModel.__new__(LanguageModel)
    torch.nn.Module.__init__(module)
    module.routers = {"layer_1": None, "mtp_1": None}
    trainer: Any = SimpleNamespace(global_step=start, max_steps=total, print=printed.append)
    callback.on_train_start(trainer, module)
    for load in loads:
        trainer.global_step += 1
        module.load, module.is_logged = load, trainer.global_step % 4 == 0
        callback.on_train_batch_end(trainer, module)
    callback.read()
    return printed


def load(*idle: tuple[int, int]) -> Tensor:
    """(2, 3) with these experts left out."""
    found = torch.full((2, 3), 4)
    for place in idle:
        found[place] = 0
    return found


def test_an_expert_is_named_once_when_it_has_been_idle_long_enough() -> None:
    steps = [load((1, 2))] * 2 + [load()] + [load((1, 2), (0, 0))] * 4 + [load()] * 2
    assert watch(ExpertLoad(patience=3), [None, *steps]) == [
        "step 7: expert 0 of layer_1 has had no token for 3 steps",
        "step 7: expert 2 of mtp_1 has had no token for 3 steps",
    ]


def test_columns_add_up_to_the_whole_load_however_long_the_run() -> None:
    callback, total = ExpertLoad(patience=9), 3 * COLUMNS - 7
    watch(callback, [load()] * total, total=total)
    assert len(callback.steps) <= COLUMNS
    assert torch.equal(sum(callback.loads) + callback.sum, total * load())
