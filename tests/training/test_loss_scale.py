"""Training in float16 with loss scaling, by a CPU in place of a GPU.

An overflow skips its step and lowers the scale; it fails only where a smaller scale cannot help.
"""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from mla_lm.errors import UserError
from mla_lm.training.callbacks import LossSpikes
from mla_lm.training.module import LanguageModel
from mla_lm.training.strategy import CheckpointFiles
from tests.training.faults import States, changed
from tests.training.small import RECORD, TOKENIZER, Case, Loader, micro_batches, trainer

SCALE, GROWTH = 2.0**10, 2  # steps without an overflow before the scale doubles
STEPS = 6


class Infinite(torch.autograd.Function):
    """The identity, whose gradient overflows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * torch.inf


class Overflowing(LanguageModel):
    """Has an infinite gradient in some steps."""

    overflows: tuple[int, ...] = ()
    infinite_loss = False

    def training_step(self, tokens: Tensor, batch_idx: int) -> Tensor:
        loss = super().training_step(tokens, batch_idx)
        if self.global_step not in self.overflows:
            return loss
        if self.infinite_loss:
            self.micro_losses[-1] = self.micro_losses[-1] * torch.inf
        return Infinite.apply(loss)  # type: ignore[no-untyped-call,no-any-return]


class Resumable(Loader):
    """The same batch over and over, so that its place does not matter."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Scales(L.Callback):
    """The scale after each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.seen.append(trainer.precision_plugin.state_dict()["scale"])


def train(
    overflows: tuple[int, ...],
    *callbacks: L.Callback,
    steps: int = STEPS,
    scale: float = SCALE,
    infinite_loss: bool = False,
    resume: Path | None = None,
) -> tuple[LanguageModel, L.Trainer]:
    torch.manual_seed(0)
    words = ("optim.lr=0.01", "trainer.max_skipped_steps=2", f"trainer.max_steps={STEPS}")
    cfg = Case().config(*words, "model.ffn.execution=padded")
    module = Overflowing(cfg, TOKENIZER, RECORD)
    module.overflows, module.infinite_loss = overflows, infinite_loss
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=GROWTH)
    plugins = [MixedPrecision("16-mixed", "cpu", scaler), CheckpointFiles()]
    by_lightning = trainer(steps, *callbacks, plugins=plugins)
    batches = Resumable(micro_batches(Case())[:1] * STEPS)
    by_lightning.fit(module, batches, batches, ckpt_path=resume, weights_only=True)
    return module, by_lightning


@pytest.mark.parametrize("step", [0, 2])
def test_an_overflow_changes_nothing_but_the_scale(
    step: int, capsys: pytest.CaptureFixture[str]
) -> None:
    scales, states = Scales(), States()
    module, _ = train((step,), LossSpikes(window=5, threshold=6.0), states, scales)
    before = [SCALE, 2 * SCALE][:step]
    lowered = (before or [SCALE])[-1] / 2
    assert scales.seen[: step + 3] == [*before, lowered, lowered, 2 * lowered]
    assert module.n_skipped == 0
    assert "skipped" not in capsys.readouterr().out
    if step:
        assert changed(states.seen[step - 1], states.seen[step]) == []
    after = changed(states.seen[step + 1], states.seen[step + 2])
    assert any("score_correction_bias" in name for name in after)
    assert any("o_proj" in name for name in after)


@pytest.mark.parametrize(("scale", "infinite_loss", "silent"), [(SCALE, True, 0), (4.0, False, 2)])
def test_what_a_smaller_scale_cannot_cure_is_a_failure(
    scale: float, infinite_loss: bool, silent: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"trainer.max_skipped_steps=2 in a row"):
        train(tuple(range(STEPS)), scale=scale, infinite_loss=infinite_loss)
    wanted = [f"step {n} skipped: the gradient is not finite" for n in (silent + 1, silent + 2)]
    assert capsys.readouterr().out.splitlines() == wanted


def test_a_resumed_run_has_the_scale_of_one_that_was_not_interrupted(tmp_path: Path) -> None:
    whole, first, second = Scales(), Scales(), Scales()
    overflows = (1, 2)
    wanted, _ = train(overflows, whole)
    _, stopped = train(overflows, first, steps=4)
    stopped.save_checkpoint(tmp_path / "x.ckpt")
    found, _ = train(overflows, second, resume=tmp_path / "x.ckpt")
    assert first.seen + second.seen == whole.seen
    assert len({*whole.seen}) > 2
    for name, weight in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight), name
