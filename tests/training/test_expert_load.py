"""The alarm for idle experts and the picture of their load, by hand and in a run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mla_lm.training.alarms import COLUMNS, ExpertLoad
from mla_lm.training.module import LanguageModel
from tests.runs.conftest import checkpoint, content, short_run, train_here, write_corpus


def watch(
    callback: ExpertLoad, loads: list[Tensor], *, start: int = 0, total: int = 10
) -> list[str]:
    """Steps of two layers by hand; the lines that were said."""
    said: list[str] = []
    module: Any = LanguageModel.__new__(LanguageModel)
    torch.nn.Module.__init__(module)
    module.routers = {"layer_1": None, "mtp_1": None}
    trainer: Any = SimpleNamespace(global_step=start, max_steps=total, print=said.append)
    callback.on_train_start(trainer, module)
    for load in loads:
        trainer.global_step += 1
        module.load, module.is_logged = load, trainer.global_step % 4 == 0
        callback.on_train_batch_end(trainer, module, None, None, 0)
        assert module.load is load
    callback.read()
    return said


def load(*idle: tuple[int, int]) -> Tensor:
    """(2, 3) with these experts left out."""
    found = torch.full((2, 3), 4)
    for place in idle:
        found[place] = 0
    return found


def test_an_expert_is_named_once_when_it_has_been_idle_long_enough() -> None:
    steps = [load((1, 2))] * 2 + [load()] + [load((1, 2), (0, 0))] * 4 + [load()] * 2
    assert watch(ExpertLoad(patience=3), steps) == [
        "step 6: expert 0 of layer_1 has had no token for 3 steps",
        "step 6: expert 2 of mtp_1 has had no token for 3 steps",
    ]


def test_a_resumed_run_goes_on_counting() -> None:
    first = ExpertLoad(patience=5)
    assert watch(first, [load((0, 1))] * 3) == []
    second = ExpertLoad(patience=5)
    second.load_state_dict(first.state_dict())
    assert len(watch(second, [load((0, 1))] * 2, start=3)) == 1
    assert second.steps == [1, 2, 3, 4, 5]


def test_columns_add_up_to_the_whole_load_however_long_the_run() -> None:
    callback, total = ExpertLoad(patience=9), 3 * COLUMNS - 7
    watch(callback, [load()] * total, total=total)
    assert len(callback.steps) <= COLUMNS
    left = 0 if callback.sum is None else callback.sum
    assert torch.equal(sum(callback.loads) + left, total * load())


def test_micro_batches_without_a_step_do_not_count() -> None:
    callback = ExpertLoad(patience=1)
    assert watch(callback, [None]) == []  # type: ignore[list-item]
    assert callback.idle is None


@pytest.mark.parametrize("patience", [0, -1, 2.5])
def test_impossible_patience_is_refused(patience: Any) -> None:
    with pytest.raises(ValueError, match="patience"):
        ExpertLoad(patience)


def test_a_run_draws_its_load_and_stores_it(tmp_path: Path) -> None:
    write_corpus(tmp_path / "text")
    train_here(*short_run(tmp_path), "trainer.max_steps=6", f"run_dir={tmp_path / 'run'}")
    assert (tmp_path / "run" / "plots" / "expert_load.png").read_bytes().startswith(b"\x89PNG")
    callbacks = content(checkpoint(tmp_path / "run", 6))["callbacks"]
    (stored,) = (state for name, state in callbacks.items() if name.startswith("ExpertLoad"))
    assert stored["steps"] == [1, 2, 3, 4, 5, 6]
    assert [int(column.sum()) for column in stored["loads"]] == [4 * (32 + 31) * 2] * 6


def test_a_model_without_experts_draws_nothing(tmp_path: Path) -> None:
    write_corpus(tmp_path / "text")
    dense = ("model/ffn=dense", "balance=none", "trainer.max_steps=2")
    train_here(*short_run(tmp_path), *dense, f"run_dir={tmp_path / 'run'}")
    assert not (tmp_path / "run" / "plots" / "expert_load.png").exists()
