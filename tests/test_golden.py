"""Losses of 20 steps against recorded ones; `python tests/test_golden.py` records them again."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from mla_lm import load_config
from mla_lm.config import RunConfig
from mla_lm.model import Transformer
from mla_lm.objective.balance import expert_load, update_bias
from mla_lm.objective.losses import mtp_targets, next_token_loss, sequence_balance_loss
from mla_lm.objective.optimizer import build_optimizer

GOLDEN = Path(__file__).with_name("golden_loss.json")
STEPS = 20
PERIOD = 61


def structured_batches(vocab_size: int, *, batch: int, length: int) -> Iterator[Tensor]:
    """Rows (batch, length + 1) that count upwards in steps of one to three, modulo PERIOD."""
    generator = torch.Generator().manual_seed(1)
    while True:
        start = torch.randint(PERIOD, (batch, 1), generator=generator)
        step = torch.randint(1, 4, (batch, 1), generator=generator)
        yield (start + step * torch.arange(length + 1)) % PERIOD % vocab_size


def train(cfg: RunConfig, *, steps: int) -> list[float]:
    """The loss of every step of a bare training loop."""
    torch.manual_seed(cfg.seed)
    model = Transformer(cfg.model)
    optimizer = build_optimizer(model, cfg.optim)
    batches = structured_batches(cfg.model.vocab_size, batch=4, length=24)
    losses = []
    for batch, _ in zip(batches, range(steps), strict=False):
        out = model(batch[:, :-1])
        loss = next_token_loss(out.logits, batch[:, 1:])
        for k, state in enumerate(out.mtp, start=1):
            depth_loss = next_token_loss(model.lm_head(state), mtp_targets(batch, k))
            loss = loss + cfg.loss.mtp_weight / len(out.mtp) * depth_loss
        for routing in out.routing:
            loss = loss + cfg.balance.sequence_loss_weight * sequence_balance_loss(routing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if out.routing:
            for router, load in zip(
                model.routers().values(), expert_load(out.routing).sum(1), strict=True
            ):
                update_bias(
                    router.e_score_correction_bias, load, speed=cfg.balance.bias_update_speed
                )
        losses.append(loss.item())
    return losses


def golden_run() -> list[float]:
    words = ["model=nano", "optim=adamw", "balance.bias_update_speed=0.001"]
    return train(load_config(words), steps=STEPS)


def test_losses_are_the_recorded_ones() -> None:
    losses, recorded = torch.tensor(golden_run()), torch.tensor(json.loads(GOLDEN.read_text()))
    torch.testing.assert_close(losses, recorded, rtol=0, atol=1e-4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    GOLDEN.write_text(json.dumps(golden_run(), indent=1) + "\n")
