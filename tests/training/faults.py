"""Ways to count experts wrongly, each met in a published code base; and steps that are poisoned."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from torch import Tensor

from mla_lm.objective import balance
from mla_lm.training.callbacks import LossSpikes
from mla_lm.training.module import LanguageModel
from tests.training.small import RECORD, TOKENIZER, Case, fit, micro_batches, ranks, trainer

POISONED = 1  # of the steps 0, 1, 2


def counted_twice(patch: pytest.MonkeyPatch) -> None:
    """As when activation checkpointing runs a block again."""
    step = LanguageModel.training_step

    def twice(self: LanguageModel, *args: Any) -> Tensor:
        loss = step(self, *args)
        self.row_loads.append(self.row_loads[-1])
        return loss

    patch.setattr(LanguageModel, "training_step", twice)


def per_micro_batch(patch: pytest.MonkeyPatch) -> None:
    step = LanguageModel.training_step

    def updating(self: LanguageModel, *args: Any) -> Tensor:
        loss = step(self, *args)
        for router, load in zip(self.routers.values(), self.row_loads[-1].sum(1), strict=True):
            balance.update_bias(router.e_score_correction_bias, load, speed=0.05)
        return loss

    patch.setattr(LanguageModel, "training_step", updating)


def in_evaluation(patch: pytest.MonkeyPatch) -> None:
    step = LanguageModel.validation_step

    def counting(self: LanguageModel, tokens: Tensor, batch_idx: int) -> None:
        step(self, tokens, batch_idx)
        batch = self.annotate(tokens)
        self.row_loads.append(balance.expert_load(self.model(batch.inputs).routing))

    patch.setattr(LanguageModel, "validation_step", counting)


def padding_too(patch: pytest.MonkeyPatch) -> None:
    count = balance.expert_load
    patch.setattr(balance, "expert_load", lambda routing, counted=None: count(routing))


def without_mtp(patch: pytest.MonkeyPatch) -> None:
    count = balance.expert_load

    def main_layers(*args: Any) -> Tensor:
        load = count(*args)
        load[-1] = 0
        return load

    patch.setattr(balance, "expert_load", main_layers)


def never_updated(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(balance, "update_bias", lambda bias, load, **_: None)


def of_this_rank_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LanguageModel, "over_ranks", lambda self, values, how="mean": values)


FAULTS: tuple[Callable[[pytest.MonkeyPatch], None], ...] = (
    counted_twice,
    per_micro_batch,
    in_evaluation,
    padding_too,
    without_mtp,
    never_updated,
)


class Poison(NamedTuple):
    """`value` comes into `place`, in the first micro-batch of a step, on the last rank."""

    place: str
    value: str
    optimizer: str


def poisons(*places: str) -> Iterator[Poison]:
    yield from map(Poison._make, product(places, ("nan", "inf"), ("adamw", "muon")))


class Poisoned(LanguageModel):
    def poison(self, what: Poison, *, here: bool) -> None:
        self.place, self.value, self.here = what.place, float(what.value), here
        self.now = False
        self.model.norm.weight.register_hook(self.poison_gradient)

    def poison_gradient(self, grad: Tensor) -> Tensor:
        last = torch.tensor([-1])
        return grad.index_fill(0, last, self.value) if self.is_in("gradient") else grad

    def is_in(self, place: str) -> bool:
        return self.now and self.place == place

    def training_step(self, tokens: Tensor, batch_idx: int) -> Tensor:
        self.now = self.global_step == POISONED and batch_idx % 2 == 0 and self.here
        loss = super().training_step(tokens, batch_idx)
        if self.is_in("loss"):  # with a gradient that is finite
            self.micro_losses[-1] = self.micro_losses[-1] + self.value
        if self.is_in("micro-batch"):
            self.micro_losses[-1] = self.micro_losses[-1] * self.value
            loss = loss * self.value
        return loss


class States(L.Callback):
    """All that a step may change, after each."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        state = {name: t.clone() for name, t in pl_module.state_dict().items()}
        (optimizer,) = trainer.optimizers
        for index, moments in optimizer.state_dict()["state"].items():
            state |= {f"{index}.{name}": t.clone() for name, t in moments.items()}
        (spikes,) = [c for c in trainer.callbacks if isinstance(c, LossSpikes)]
        state["losses"] = torch.tensor(list(spikes.losses))
        self.seen.append(state)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    assert before.keys() == after.keys()
    return [name for name in before if not torch.equal(before[name], after[name])]


def train_poisoned(what: Poison, *, rank: int = 0, n_ranks: int = 1) -> dict[str, list[str]]:
    """What changed in the poisoned step, and in the one after."""
    case = Case(accumulate=2)
    torch.manual_seed(0)
    module = Poisoned(case.config(f"optim={what.optimizer}", "optim.lr=0.01"), TOKENIZER, RECORD)
    module.poison(what, here=rank == n_ranks - 1)
    states = States()
    callbacks = (LossSpikes(window=5, threshold=6.0), states)
    by_lightning = trainer(3, *callbacks, accumulate_grad_batches=2, **ranks(n_ranks))
    fit(by_lightning, module, micro_batches(case, n_ranks)[rank::n_ranks])
    _, first, _, second, _, third = states.seen
    return {"poisoned": changed(first, second), "after": changed(second, third)}
