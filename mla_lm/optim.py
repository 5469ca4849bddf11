"""AdamW with decay groups, and schedules as pure functions step -> multiplier."""

import math
from functools import partial

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mla_lm.config import LossConfig, OptimConfig


def lr_multiplier(step: int, *, cfg: OptimConfig, max_steps: int) -> float:
    """Multiplier of `cfg.lr` for optimizer step `step` (from 0): warm-up, then cosine or WSD.

    `cosine` decays from the end of the warm-up on; `wsd` stays at 1 and falls linearly over the
    last `decay_fraction` of the run. Both end at `min_lr_ratio`.
    """
    warmup_steps = round(cfg.warmup_fraction * max_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    decay_steps = max_steps - warmup_steps
    if cfg.schedule == "wsd":
        decay_steps = min(decay_steps, round(cfg.decay_fraction * max_steps))
    left = min(1.0, max(0, max_steps - step) / max(1, decay_steps))
    shape = left if cfg.schedule == "wsd" else 0.5 * (1 - math.cos(math.pi * left))
    return cfg.min_lr_ratio + (1 - cfg.min_lr_ratio) * shape


def mtp_weight(step: int, *, cfg: LossConfig, max_steps: int) -> float:
    """Weight of the MTP loss at `step`: DeepSeek-V3 used 0.3 for 10 of 14.8 T tokens, then 0.1."""
    return cfg.mtp_weight if step < cfg.mtp_switch * max_steps else cfg.mtp_final_weight


def build_optimizer(model: nn.Module, cfg: OptimConfig) -> Optimizer:
    """AdamW over two groups: matrices decay, vectors (norms) do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": cfg.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, fused=True)


def build_schedule(optimizer: Optimizer, cfg: OptimConfig, *, max_steps: int) -> LambdaLR:
    """The learning-rate schedule, stepped once per optimizer step."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, partial(lr_multiplier, cfg=cfg, max_steps=max_steps)
    )
