"""Training steps that are measured: ours, `transformers`' and a plain dense model's, no Lightning.

Every side is forward, cross-entropy, backward and fused AdamW on the same tokens (B, T + 1).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mla_lm.bench.report import timed
from mla_lm.config import RunConfig
from mla_lm.model import Transformer
from mla_lm.objective import balance
from mla_lm.objective.losses import head_loss, mtp_targets
from mla_lm.objective.optimizer import build_optimizer


class Side(NamedTuple):
    """A model, its optimizer, its loss of tokens (B, T + 1), and what follows the backward pass."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Tensor], Tensor]
    update: Callable[[], object]

    def step(self, tokens: Tensor, context: AbstractContextManager[Any]) -> float:
        """The loss before a step; `context` sets the number format of the forward pass."""
        with context:
            loss = self.loss(tokens)
        loss.backward()
        self.update()
        self.model.zero_grad()
        return float(loss.detach())  # last: a GPU is waited for here


def ours(cfg: RunConfig, device: str = "cpu") -> Side:
    """The loss and the updates that the Lightning module makes of a batch, biases included."""
    torch.manual_seed(0)
    model = Transformer(cfg.model).to(device)
    if cfg.trainer.compile:
        model.compile_blocks(whole=device == "cuda")
    optimizer = build_optimizer(model, cfg.optim)
    routers = model.routers().values()
    load: list[Tensor] = []

    def loss(tokens: Tensor) -> Tensor:
        checkpointing = cfg.trainer.activation_checkpointing
        out = model(tokens[:, :-1], logits=False, checkpointing=checkpointing)
        total = head_loss(out.hidden, model.lm_head.weight, tokens[:, 1:])
        for depth, hidden in enumerate(out.mtp, start=1):
            targets = mtp_targets(tokens, depth)
            weight = cfg.loss.mtp_weight / len(out.mtp)
            total = total + weight * head_loss(hidden, model.lm_head.weight, targets)
        if out.routing:
            load[:] = balance.expert_load(out.routing).sum(dim=1)
        return total

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for router, received in zip(routers, load, strict=bool(load)):
            balance.update_bias(
                router.e_score_correction_bias, received, speed=cfg.balance.bias_update_speed
            )

    return Side(model, optimizer, loss, update)


def peer(folder: Path, experts: str, device: str = "cpu", *, compiled: bool = False) -> Side:
    """`transformers`' DeepseekV3ForCausalLM of a folder, by one implementation of its experts."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.DeepseekV3ForCausalLM.from_pretrained(
        folder, dtype=torch.float32, experts_implementation=experts
    ).train()
    model.to(device)
    if compiled:
        model.compile()
    return _by_logits(model, lambda ids: model(ids, use_cache=False).logits)


def _by_logits(model: nn.Module, logits: Callable[[Tensor], Tensor]) -> Side:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def loss(tokens: Tensor) -> Tensor:
        found = logits(tokens[:, :-1]).float()
        return F.cross_entropy(found.flatten(0, 1), tokens[:, 1:].flatten())

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return Side(model, optimizer, loss, update)


def seconds(side: Side, tokens: Tensor, number_format: str) -> float:
    """What a step takes."""
    context = autocast(number_format, tokens.device.type)
    return timed(lambda: side.step(tokens, context))


def autocast(number_format: str, device: str = "cpu") -> AbstractContextManager[Any]:
    """`float32`, or matrix products in `bfloat16`."""
    return torch.autocast(device, torch.bfloat16, enabled=number_format == "bfloat16")


def assert_equal(one: Side, other: Side, tokens: Tensor) -> None:
    """Both have the same loss and the same norm of the whole gradient, in float32."""
    for mine, theirs in zip(loss_and_norm(one, tokens), loss_and_norm(other, tokens), strict=True):
        assert abs(mine - theirs) < 1e-4 * theirs, "the two steps differ"


def loss_and_norm(side: Side, tokens: Tensor) -> tuple[float, float]:
    """The loss, and the norm of its gradient."""
    loss = side.loss(tokens)
    loss.backward()
    norm = torch.nn.utils.get_total_norm(
        [p.grad for p in side.model.parameters() if p.grad is not None]
    )
    side.model.zero_grad()
    return float(loss.detach()), float(norm)
