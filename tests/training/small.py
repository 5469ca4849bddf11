"""A tiny model trained for three steps in every way that could count tokens wrongly.

Weights stay where they are (the learning rate is nothing), so only biases change what is chosen.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from mla_lm.checkpoint.record import Record
from mla_lm.config import RunConfig
from mla_lm.data import Tokenizer
from mla_lm.data.batch import Annotator
from mla_lm.data.corpora.synthetic import FILLER
from mla_lm.model import Transformer
from mla_lm.objective import balance
from mla_lm.training.module import LanguageModel
from tests.conftest import TINY, load_config, randomized

STEPS, BATCH, LENGTH = 3, 2, 24
TOKENIZER = Tokenizer.train((), vocab_size=257, end_of_text="<|endoftext|>")
RECORD = Record(config={}, command="", tokenizer=TOKENIZER.json, data={}, environment={})


class Case(NamedTuple):
    """`accumulate` micro-batches per step on every rank."""

    checkpointing: str = "none"
    accumulate: int = 1
    evaluate: bool = False
    padded: bool = False
    mtp_depth: int = 1

    def config(self, *more: str) -> RunConfig:
        return load_config(
            [
                *TINY,
                "data=synthetic",
                f"data.seq_len={LENGTH}",
                "model.vocab_size=320",
                "optim.lr=1e-38",
                "balance.bias_update_speed=0.05",
                "balance.bias_decay_fraction=0.0",
                f"trainer.activation_checkpointing={self.checkpointing}",
                f"model.mtp_depth={self.mtp_depth}",
                f"trainer.max_steps={STEPS}",
                *more,
            ]
        )


CASES = (  # every pair of two choices
    Case("none", 1, False, False, 0),
    Case("none", 2, True, True, 1),
    Case("reentrant", 1, True, False, 1),
    Case("reentrant", 2, False, True, 0),
    Case("non_reentrant", 1, False, True, 1),
    Case("non_reentrant", 2, True, False, 0),
)


def micro_batches(case: Case, n_ranks: int = 1) -> list[Tensor]:
    """In the order rank 0, rank 1, rank 0, ...: (BATCH, LENGTH + 1) each."""
    generator = torch.Generator().manual_seed(1)
    shape = (STEPS * case.accumulate * n_ranks, BATCH, LENGTH + 1)
    letters = torch.tensor(TOKENIZER.encode("abcdefghijklmnop"))
    tokens = letters[torch.randint(len(letters), shape, generator=generator)]
    tokens[..., -4] = TOKENIZER.encode("=")[0]
    tokens[..., -1] = TOKENIZER.encode(";")[0]
    if case.padded:
        tokens[..., : LENGTH // 2] = TOKENIZER.encode(FILLER)[0]
    return list(tokens)


def build(cfg: RunConfig) -> Transformer:
    torch.manual_seed(0)
    return randomized(Transformer(cfg.model))


@torch.no_grad()
def reference(case: Case, n_ranks: int = 1) -> dict[str, Any]:
    """A plain loop: the load of each step and the biases at the end."""
    cfg = case.config()
    model, annotate = build(cfg), Annotator(cfg.data, TOKENIZER)
    biases = [router.e_score_correction_bias for router in model.routers().values()]
    for bias in biases:
        bias.zero_()
    loads: list[Tensor] = []
    batches = [annotate(tokens) for tokens in micro_batches(case, n_ranks)]
    per_step = case.accumulate * n_ranks
    for first in range(0, len(batches), per_step):
        load = torch.zeros(len(biases), biases[0].numel(), dtype=torch.int64)
        for batch in batches[first : first + per_step]:
            for layer, routed in enumerate(model(batch.inputs).routing):
                ahead = LENGTH - routed.experts.shape[1]  # the depth of an MTP block
                for row, position in torch.ones(routed.experts.shape[:2]).nonzero().tolist():
                    if batch.counted[row, position] and batch.counted[row, position + ahead]:
                        for expert in routed.experts[row, position].tolist():
                            load[layer, expert] += 1
        loads.append(load)
        for bias, layer_load in zip(biases, load, strict=True):
            balance.update_bias(bias, layer_load, speed=cfg.balance.bias_update_speed)
    return {"loads": [load.tolist() for load in loads], "biases": [b.tolist() for b in biases]}


class Loader:
    """Batches as one loader; Lightning takes a list for several."""

    def __init__(self, batches: list[Tensor], accumulate: int = 1) -> None:
        self.batches, self.accumulate, self.taken = batches, accumulate, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        for self.taken, batch in enumerate(self.batches, 1):  # noqa: B020
            yield batch

    def rest_of_step(self) -> Tensor:
        rest = self.batches[self.taken : self.taken + self.accumulate - 1]
        return torch.cat([self.batches[0][:0], *rest])


class Loads(L.Callback):
    def __init__(self) -> None:
        self.loads: list[Any] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if pl_module.load is not None:
            self.loads.append(pl_module.load.tolist())


def trainer(max_steps: int, *callbacks: L.Callback, **more: Any) -> L.Trainer:
    """Without validation and files unless `more` asks for them."""
    quiet = {
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        max_epochs=-1,
        gradient_clip_val=1.0,
        callbacks=list(callbacks),
        **{**quiet, **more},
    )


def fit(trainer: L.Trainer, module: LanguageModel, batches: list[Tensor]) -> None:
    train = Loader(batches, trainer.accumulate_grad_batches)
    trainer.fit(module, train, Loader(batches[:1]))


def ranks(n: int) -> dict[str, Any]:
    return {"devices": n, "strategy": "ddp" if n > 1 else "auto"}


def trained(case: Case, *, rank: int = 0, n_ranks: int = 1) -> dict[str, Any]:
    """The same as `reference` by Lightning, as one of the ranks."""
    cfg = case.config()
    module = LanguageModel(cfg, TOKENIZER, RECORD)
    module.model.load_state_dict(build(cfg).state_dict())
    for router in module.routers.values():
        router.e_score_correction_bias.zero_()
    batches = micro_batches(case, n_ranks)[rank::n_ranks]
    watch = Loads()
    validation: dict[str, Any] = {"val_check_interval": case.accumulate, "limit_val_batches": 1.0}
    by_lightning = trainer(
        STEPS,
        watch,
        accumulate_grad_batches=case.accumulate,
        check_val_every_n_epoch=None,
        **ranks(n_ranks),
        **(validation if case.evaluate else {}),
    )
    fit(by_lightning, module, batches)
    biases = [router.e_score_correction_bias.tolist() for router in module.routers.values()]
    return {"loads": watch.loads, "biases": biases}
