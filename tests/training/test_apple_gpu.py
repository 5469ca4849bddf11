"""An Apple GPU as this CPU can stand in for it: no float64, own random numbers, no compiling."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mla_lm.data.batch import Annotator
from mla_lm.evaluation.language_model import evaluate
from mla_lm.evaluation.scoring import Request, score
from mla_lm.training.exact_resume import ExactResume
from mla_lm.training.module import LanguageModel
from tests.training.small import RECORD, TOKENIZER, Case, fit, micro_batches, trainer


class OnHost(Tensor):
    """What `cpu` returned."""


@pytest.fixture
def without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor is on the GPU until `cpu` takes it off."""
    cpu, double = Tensor.cpu, Tensor.double

    def checked(self: Tensor) -> Tensor:
        assert isinstance(self, OnHost), "no float64 on an Apple GPU"
        return double(self)

    monkeypatch.setattr(Tensor, "cpu", lambda self: cpu(self).as_subclass(OnHost))
    monkeypatch.setattr(Tensor, "double", checked)


@pytest.mark.usefixtures("without_float64")
def test_no_metric_makes_a_float64_tensor_on_the_device() -> None:
    with pytest.raises(AssertionError, match="no float64"):
        torch.zeros(1).double()
    module = LanguageModel(Case().config(), TOKENIZER, RECORD)
    batches = micro_batches(Case())
    by_lightning = trainer(1, limit_val_batches=1.0, val_check_interval=1)
    fit(by_lightning, module, batches)
    assert "mtp/acceptance" in by_lightning.callback_metrics
    evaluate(module.model, batches, module.byte_lengths, Annotator(module.cfg.data, TOKENIZER))
    score(module.model, [Request((1, 2), (3,))])


def test_random_numbers_of_an_apple_gpu_are_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    restored: list[Tensor] = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.tensor([7]))
    monkeypatch.setattr(torch.mps, "set_rng_state", restored.append)
    stored: dict[str, Any] = ExactResume().state_dict()
    resumed = ExactResume()
    resumed.load_state_dict(stored)
    restored.clear()  # it has tried them
    by_lightning = trainer(1)
    resumed.on_train_epoch_start(by_lightning, LanguageModel(Case().config(), TOKENIZER, RECORD))
    assert restored == [torch.tensor([7])]
    del stored["ranks"][0]["mps"]  # as in a checkpoint of before
    resumed.load_state_dict(stored)
    restored.clear()
    resumed.on_train_epoch_start(by_lightning, LanguageModel(Case().config(), TOKENIZER, RECORD))
    assert restored == []


@pytest.mark.parametrize(("device", "compiles"), [("cpu", True), ("mps", False)])
def test_blocks_are_compiled_where_they_can_be(
    device: str, compiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[torch.dtype] = []
    module = LanguageModel(Case().config("trainer.compile=true"), TOKENIZER, RECORD)
    module.trainer = trainer(1, precision="bf16-mixed")
    monkeypatch.setattr(LanguageModel, "device", torch.device(device))
    monkeypatch.setattr(
        module.model, "compile_blocks", lambda: calls.append(module.model.matmul_dtype)
    )
    module.on_fit_start()
    assert calls == [torch.bfloat16] * compiles
