"""The sides that are measured, without Lightning: ours, and the model of `transformers`."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mla_lm.bench.report import Task, timed
from mla_lm.config import RunConfig
from mla_lm.config.compose import load_config
from mla_lm.data.batch import Batch
from mla_lm.interop import config_dict, to_hugging_face, write_shards
from mla_lm.machine import Resolved, autocast
from mla_lm.model import Transformer
from mla_lm.objective import balance
from mla_lm.objective.losses import loss_terms, next_token_loss
from mla_lm.objective.optimizer import build_optimizer

EXPERTS = ("eager", "grouped_mm")  # the peer's ways to run experts


class Side(NamedTuple):
    """A model, its optimizer, its loss of tokens (B, T + 1), and what follows the optimizer."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Tensor], Tensor]
    after: Callable[[], object] = lambda: None

    def step(self, tokens: Tensor, precision: Resolved) -> float:
        """One optimizer step; returns the loss before it."""
        with autocast(precision, tokens.device.type):
            loss = self.loss(tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.after()
        self.model.zero_grad()
        return float(loss.detach())  # last: a GPU is waited for here


def ours(cfg: RunConfig, precision: Resolved = "32-true", device: str = "cpu") -> Side:
    """The loss and the updates of a run, biases included."""
    torch.manual_seed(0)
    model = Transformer(cfg.model).to(device)
    if cfg.trainer.compile:
        with autocast(precision, device):
            model.compile_blocks()
    routers = model.routers().values()
    load: list[Tensor] = []

    def loss(tokens: Tensor) -> Tensor:
        checkpointing = cfg.trainer.activation_checkpointing
        out = model(tokens[:, :-1], logits=False, checkpointing=checkpointing)
        batch = Batch(tokens, tokens, documents=None, counted=None)
        terms, _ = loss_terms(out, batch, model.lm_head.weight, cfg.balance)
        if out.routing:
            load[:] = balance.expert_load(out.routing).sum(dim=1)
        return terms["ce"] + cfg.loss.mtp_weight * terms.get("mtp", 0.0)

    def move_biases() -> None:
        for router, received in zip(routers, load, strict=bool(load)):
            speed = cfg.balance.bias_update_speed
            balance.update_bias(router.e_score_correction_bias, received, speed=speed)

    return Side(model, build_optimizer(model, cfg.optim), loss, move_biases)


def of_logits(
    model: nn.Module, logits: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer
) -> Side:
    """A side whose model returns logits (B, T, V) of inputs (B, T)."""
    return Side(model, optimizer, lambda t: next_token_loss(logits(t[:, :-1]), t[:, 1:]))


def peer(folder: Path, experts: str, device: str = "cpu", *, compiled: bool = False) -> Side:
    """`transformers`' model of a folder, with one way to run its experts."""
    model = load_peer(folder, experts).train().to(device)
    if compiled:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    return of_logits(model, lambda ids: model(ids, use_cache=False).logits, optimizer)


def batch(cfg: RunConfig, device: str = "cpu") -> Tensor:
    """Random tokens (B, T + 1), the same every time."""
    generator = torch.Generator().manual_seed(1)
    shape = (cfg.data.batch_size, cfg.data.seq_len + 1)
    return torch.randint(cfg.model.vocab_size, shape, generator=generator).to(device)


def our_step(overrides: Sequence[str], precision: Resolved, device: str = "cpu") -> Task:
    """Measures a step of the run that `overrides` compose."""
    cfg = load_config(overrides)
    return partial(timed, partial(ours(cfg, precision, device).step, batch(cfg, device), precision))


def peer_step(
    folder: Path,
    experts: str,
    overrides: Sequence[str],
    precision: Resolved,
    device: str = "cpu",
    *,
    compiled: bool = False,
) -> Task:
    """Measures a step of the peer on the batch of that run."""
    step = peer(folder, experts, device, compiled=compiled).step
    return partial(timed, partial(step, batch(load_config(overrides), device), precision))


def write_equal_peer(cfg: RunConfig, folder: Path) -> None:
    """Write the peer with our weights; AssertionError if its step differs in float32."""
    mine = ours(cfg)
    assert isinstance(mine.model, Transformer)
    write_peer(mine.model, folder)
    assert_equal(mine, peer(folder, EXPERTS[0]), batch(cfg)[:2])


def assert_equal(one: Side, other: Side, tokens: Tensor) -> None:
    """Both have the same loss and the same norm of the whole gradient in float32."""
    found = []
    for side in (one, other):
        loss = side.loss(tokens)
        loss.backward()
        grads = [p.grad for p in side.model.parameters() if p.grad is not None]
        found.append(torch.stack([loss.detach(), torch.nn.utils.get_total_norm(grads)]))
        side.model.zero_grad()
    torch.testing.assert_close(*found, rtol=1e-4, atol=0)


def write_peer(model: Transformer, folder: Path) -> None:
    """A folder that `load_peer` reads."""
    (folder / "config.json").write_text(json.dumps(config_dict(model.cfg)), encoding="utf-8")
    tensors = to_hugging_face(model.state_dict(), model.cfg)
    write_shards(tensors, folder, dtype=torch.float32, max_bytes=10**10)


def load_peer(folder: Path, experts: str, dtype: torch.dtype = torch.float32) -> Any:
    """The model, with one way to run its experts."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers.DeepseekV3ForCausalLM.from_pretrained(
        folder, dtype=dtype, experts_implementation=experts
    )


@torch.inference_mode()
def greedy(model: Any, prompt: Tensor) -> Iterator[int]:
    """Ids behind a prompt (1, T), one forward pass with a KV cache for each."""
    import transformers

    cache, ids = transformers.DynamicCache(config=model.config), prompt
    while True:
        out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        ids = out.logits.argmax(-1)
        yield int(ids)
