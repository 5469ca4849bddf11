"""A training step reads two numbers from the device, together; a GPU is waited for only there."""

from typing import Any

import lightning as L
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mla_lm.training.callbacks import LossSpikes
from mla_lm.training.module import LanguageModel
from mla_lm.training.plots import ExpertLoad
from tests.conftest import TINY, load_config
from tests.training.small import RECORD, TOKENIZER, fit, trainer

READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")
WAITS = ("aten::nonzero", "aten::bincount", "aten::_local_scalar_dense", "aten::masked_select")
LOGGED, STEPS = 5, 9


class Waits(TorchDispatchMode):
    """Kernels whose result's size, or value, the host must know."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func.name() == "aten::index.Tensor" and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or func.name().startswith(WAITS):
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def spy_on(reads: list[str], patch: pytest.MonkeyPatch) -> None:
    for name in READS:
        honest = getattr(torch.Tensor, name)

        def spy(*args: Any, name: str = name, honest: Any = honest, **options: Any) -> Any:
            reads.append(name)
            return honest(*args, **options)

        patch.setattr(torch.Tensor, name, spy)


class Steps(L.Callback):
    """Notes what each step reads, from its batch to the next."""

    def __init__(self, reads: list[str]) -> None:
        self.reads = reads
        self.by_step: list[list[str]] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.by_step.append(self.reads[:])
        self.reads.clear()


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_one_read_per_step(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (f"optim={kind}", "model.ffn.execution=grouped_mm", "model.mtp_depth=1")
    wide = ("model.dim=32", "model.ffn.moe_inter_dim=32")
    steps = (f"trainer.log_every_n_steps={LOGGED}", f"trainer.max_steps={STEPS}")
    module = LanguageModel(load_config([*TINY, *words, *wide, *steps]), TOKENIZER, RECORD)
    batches = [torch.randint(TOKENIZER.vocab_size, (2, 17)) for _ in range(STEPS)]
    with Waits() as waits, monkeypatch.context() as patch:
        spy_on(waits.names, patch)
        watch = Steps(waits.names)
        callbacks = (ExpertLoad(100), LossSpikes(50, 5.0), watch)
        fit(trainer(STEPS, *callbacks, log_every_n_steps=LOGGED), module, batches)
    by_step = enumerate(watch.by_step[1:], 1)
    unlogged = [reads for step, reads in by_step if step > 1 and step % LOGGED]
    assert unlogged == [["tolist"]] * len(unlogged)
    assert len(unlogged) > 5
