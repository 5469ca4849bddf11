"""Train three steps whose second is poisoned; a process of `test_skipped.py`.

`python poisoned.py OUT.json`, alone or as one of several ranks (torchrun's variables): what changed
in the poisoned step, and what in the one after.
"""

import json
import os
import sys
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from mla_lm.checkpoint.record import Record
from mla_lm.model.moe import Router
from mla_lm.training.loss_spikes import LossSpikes
from mla_lm.training.module import LanguageModel
from tests.training import bookkeeping
from tests.training.bookkeeping import TOKENIZER, Loader, micro_batches

POISONED = 1  # of the steps 0, 1, 2
RANK, N_RANKS = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Case(NamedTuple):
    """`value` comes into `place`, in one of the micro-batches of the step."""

    place: str
    value: str
    kind: str


def cases() -> Iterator[Case]:
    places = ("loss", "gradient", "router", "micro-batch") if N_RANKS == 1 else ("rank",)
    yield from map(Case._make, product(places, ("nan", "inf"), ("adamw", "muon")))


class Poisoned(LanguageModel):
    """The poison comes with the first of two micro-batches; of the ranks, to one alone."""

    def poison(self, case: Case) -> None:
        self.place, self.value = case.place, float(case.value)
        self.now = False
        self.model.norm.weight.register_hook(self.poison_gradient)
        for module in self.modules():
            if isinstance(module, Router):
                module.register_forward_pre_hook(self.poison_router)

    def poison_gradient(self, grad: Tensor) -> Tensor:
        last = torch.tensor([-1])
        return grad.index_fill(0, last, self.value) if self.in_place("gradient") else grad

    def poison_router(self, router: Router, x: tuple[Tensor]) -> tuple[Tensor]:
        return (x[0] * self.value,) if self.in_place("router") else x

    def in_place(self, *places: str) -> bool:
        return self.now and self.place in places

    def training_step(self, tokens: Tensor, batch_idx: int) -> Tensor:
        first, last_rank = batch_idx % 2 == 0, RANK == N_RANKS - 1
        self.now = self.global_step == POISONED and first and last_rank
        loss = super().training_step(tokens, batch_idx)
        if self.in_place("loss"):  # with a gradient that is finite
            self.micro_losses[-1] = self.micro_losses[-1] + self.value
        if self.in_place("micro-batch", "rank"):
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
        for index, kept in optimizer.state_dict()["state"].items():
            state |= {f"{index}.{name}": t.clone() for name, t in kept.items()}
        (spikes,) = [c for c in trainer.callbacks if isinstance(c, LossSpikes)]
        state["losses"] = torch.tensor(list(spikes.losses))
        self.seen.append(state)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    assert before.keys() == after.keys()
    return [name for name in before if not torch.equal(before[name], after[name])]


def trained(case: Case) -> dict[str, Any]:
    plain = bookkeeping.Case("none", 2, False, False, 1)
    cfg = plain.config()
    optim = cfg.optim.model_copy(update={"lr": 0.01, "kind": case.kind})
    cfg = cfg.model_copy(update={"optim": optim})
    record = Record(config={}, command="", tokenizer=TOKENIZER.json, data={}, environment={})
    torch.manual_seed(0)
    module = Poisoned(cfg, TOKENIZER, record)
    module.poison(case)
    states = States()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=N_RANKS,
        strategy="ddp" if N_RANKS > 1 else "auto",
        max_steps=3,
        max_epochs=-1,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[LossSpikes(window=5, threshold=6.0), states],
    )
    trainer.fit(module, Loader(micro_batches(plain, N_RANKS)[RANK::N_RANKS]))
    _, first, _, second, _, third = states.seen
    return {"poisoned": changed(first, second), "after": changed(second, third)}


def main(out: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    out.write_text(json.dumps({str(case): trained(case) for case in cases()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
