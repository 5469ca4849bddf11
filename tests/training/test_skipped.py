"""A step whose loss or gradient is not finite changes nothing; many in a row end the run."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from mla_lm.checkpoint.record import Record
from mla_lm.errors import UserError
from mla_lm.training.loss_spikes import LossSpikes
from mla_lm.training.module import LanguageModel
from tests.reliability.record import record
from tests.training.bookkeeping import TOKENIZER, Case, Loader, micro_batches
from tests.training.test_bookkeeping import run_ranks

CASE = Case("none", 1, False, False, 1)


def test_a_poisoned_step_changes_nothing_on_any_rank(tmp_path: Path) -> None:
    found = run_ranks("poisoned.py", tmp_path)
    assert found["first"].keys() == found["second"].keys()
    cases = [*found["alone"].items(), *found["first"].items()]
    clean = [case for case, steps in cases if steps["poisoned"] == []]
    record("NaN or Inf in loss, gradient, router, rank: state unchanged", len(clean), len(cases))
    assert len(cases) == 20
    assert [case for case, steps in cases if steps["poisoned"]] == []
    for ranks in found.values():
        for steps in ranks.values():
            assert steps["poisoned"] == []
            moved = " ".join(steps["after"])
            assert "e_score_correction_bias" in moved
            assert "o_proj.weight" in moved
            assert "losses" in moved


class Poison(LanguageModel):
    """The loss of some steps is not a number, of others it is high."""

    bad: tuple[int, ...] = ()
    high: tuple[int, ...] = ()

    def training_step(self, tokens: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(tokens, batch_idx)
        factor = torch.nan if self.global_step in self.bad else 1.0
        self.micro_losses[-1] = self.micro_losses[-1] * factor
        if self.global_step in self.high:
            self.micro_losses[-1] = self.micro_losses[-1] + 100
        return loss * factor


def train(module: LanguageModel, steps: int, *callbacks: L.Callback) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    loader = Loader(micro_batches(CASE, 1))
    trainer.fit(module, loader, loader)
    return trainer


def built(*, max_skipped_steps: int = 9) -> Poison:
    cfg = CASE.config()
    limits = cfg.trainer.model_copy(update={"max_skipped_steps": max_skipped_steps})
    cfg = cfg.model_copy(update={"trainer": limits})
    empty: dict[str, Any] = {}
    about = Record(
        config=empty, command="", tokenizer=TOKENIZER.json, data=empty, environment=empty
    )
    return Poison(cfg, TOKENIZER, about)


def test_what_is_skipped_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    module = built()
    module.bad = (1,)
    train(module, 3)
    said = [line for line in capsys.readouterr().out.splitlines() if "skipped" in line]
    assert said == ["step 2 skipped: the gradient is not finite"]


def test_many_in_a_row_end_the_run_in_one_line() -> None:
    module = built(max_skipped_steps=3)
    module.bad = (1, 2, 4, 5, 6, 7)
    with pytest.raises(
        UserError, match=r"stopped at step 7: trainer.max_skipped_steps=3"
    ) as caught:
        train(module, 20)
    assert "\n" not in str(caught.value)


def test_a_spike_is_said_once_the_window_is_full(capsys: pytest.CaptureFixture[str]) -> None:
    module = built()
    module.bad, module.high = (4,), (1, 8)
    spikes = LossSpikes(window=5, threshold=1.5)
    train(module, 10, spikes)
    said = [line for line in capsys.readouterr().out.splitlines() if "spike" in line]
    assert len(said) == 1
    assert said[0].startswith("step 9: loss 10")
    assert all(loss == loss for loss in spikes.losses)


@pytest.mark.parametrize(
    ("window", "threshold"), [(1, 6.0), (2.0, 6.0), (5, 0.0), (5, float("nan"))]
)
def test_nonsense_is_refused(window: Any, threshold: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        LossSpikes(window=window, threshold=threshold)
