"""Train a little in every way that could count tokens wrongly; a process of `test_bookkeeping.py`.

`python bookkeeping.py OUT.json`, alone or as one of several ranks (torchrun's variables). Weights
stay where they are (the learning rate is nothing), so that only biases change what is chosen.
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
from mla_lm.config import RunConfig
from mla_lm.data import Annotator, Tokenizer
from mla_lm.data.corpora.synthetic import FILLER
from mla_lm.model import Transformer
from mla_lm.objective import balance
from mla_lm.training.module import LanguageModel
from tests.conftest import TINY, load_config, randomized

STEPS, BATCH, LENGTH, N_RANKS = 3, 2, 40, 2
TOKENIZER = Tokenizer.train((), vocab_size=257, end_of_text="<|endoftext|>")


class Case(NamedTuple):
    """`accumulate` micro-batches a step on every rank."""

    checkpointing: str
    accumulate: int
    evaluate: bool
    padded: bool
    mtp_depth: int

    def config(self) -> RunConfig:
        words = (
            "data=synthetic",
            "data.seq_len=40",
            "model.vocab_size=320",
            "optim.lr=1e-38",
            "balance.bias_update_speed=0.05",
            "balance.bias_decay_fraction=0.0",
            f"trainer.activation_checkpointing={self.checkpointing}",
            f"model.mtp_depth={self.mtp_depth}",
            f"trainer.max_steps={STEPS}",
        )
        return load_config([*TINY, *words])


def cases() -> Iterator[Case]:
    kinds = ("none", "reentrant", "non_reentrant")
    yield from map(Case._make, product(kinds, (1, 4), (False, True), (False, True), (0, 1)))


def micro_batches(case: Case, n_ranks: int) -> list[Tensor]:
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
def reference(case: Case, n_ranks: int) -> dict[str, Any]:
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
            routing = model(batch.inputs).routing
            for layer, routed in enumerate(routing):
                for row, position in torch.ones(routed.experts.shape[:2]).nonzero().tolist():
                    ahead = LENGTH - routed.experts.shape[1]
                    if not batch.counted[row, position] or not batch.counted[row, position + ahead]:
                        continue
                    for expert in routed.experts[row, position].tolist():
                        load[layer, expert] += 1
        loads.append(load)
        for bias, layer_load in zip(biases, load, strict=True):
            balance.update_bias(bias, layer_load, speed=cfg.balance.bias_update_speed)
    return {"loads": [load.tolist() for load in loads], "biases": [b.tolist() for b in biases]}


class Loader:
    """Batches as one loader; Lightning takes a list for several."""

    def __init__(self, batches: list[Tensor]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches)


class Loads(L.Callback):
    def __init__(self) -> None:
        self.loads: list[Any] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if pl_module.load is not None:
            self.loads.append(pl_module.load.tolist())


def trained(case: Case, rank: int, n_ranks: int) -> dict[str, Any]:
    """The same by Lightning, as one of the ranks."""
    cfg = case.config()
    record = Record(config={}, command="", tokenizer=TOKENIZER.json, data={}, environment={})
    module = LanguageModel(cfg, TOKENIZER, record)
    module.model.load_state_dict(build(cfg).state_dict())
    for router in module.routers.values():
        router.e_score_correction_bias.zero_()
    batches = micro_batches(case, n_ranks)[rank::n_ranks]
    watch = Loads()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=n_ranks,
        strategy="ddp" if n_ranks > 1 else "auto",
        max_steps=STEPS,
        max_epochs=-1,
        accumulate_grad_batches=case.accumulate,
        gradient_clip_val=1.0,
        val_check_interval=case.accumulate if case.evaluate else None,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if case.evaluate else 0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch],
    )
    trainer.fit(module, Loader(batches), Loader(batches[:1]) if case.evaluate else None)
    biases = [router.e_score_correction_bias.tolist() for router in module.routers.values()]
    return {"loads": watch.loads, "biases": biases}


def main(out: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rank, n_ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    found = {str(case): trained(case, rank, n_ranks) for case in cases()}
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
