"""A step whose gradient is not finite changes nothing: weights, moments, biases."""

from typing import Any

import lightning as L
import pytest
import torch

from mla_lm.checkpoint import Record
from mla_lm.training.module import LanguageModel
from tests.training.bookkeeping import TOKENIZER, Case, Loader, micro_batches

CASE = Case("none", 1, False, False, 1)


class Poison(LanguageModel):
    """The loss of the second step is not a number."""

    def training_step(self, tokens: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(tokens, batch_idx)
        return loss * torch.nan if self.global_step == 1 else loss


class States(L.Callback):
    """Everything a step may change, after each."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        state = {name: t.clone() for name, t in pl_module.state_dict().items()}
        (optimizer,) = trainer.optimizers
        for index, kept in optimizer.state_dict()["state"].items():
            state |= {f"{index}.{name}": t.clone() for name, t in kept.items()}
        self.seen.append(state)


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_step_without_a_finite_gradient_is_void_and_said(
    capsys: pytest.CaptureFixture[str], kind: str, clip: float | None
) -> None:
    cfg = CASE.config()
    cfg = cfg.model_copy(update={"optim": cfg.optim.model_copy(update={"lr": 0.01, "kind": kind})})
    record = Record(config={}, overrides=[], tokenizer=TOKENIZER.json, data={})
    module, states = Poison(cfg, TOKENIZER, record), States()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=3,
        gradient_clip_val=clip,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[states],
    )
    loader = Loader(micro_batches(CASE, 1))
    trainer.fit(module, loader, loader)
    first, second, third = states.seen
    assert changed(first, second) == set()
    moved = changed(second, third)
    assert any(name.endswith("e_score_correction_bias") for name in moved)
    assert any(name.endswith("o_proj.weight") for name in moved)
    said = [line for line in capsys.readouterr().out.splitlines() if "skipped" in line]
    assert said == ["step 2 skipped: the gradient is not finite"]
