"""Schedules over a run: learning rate, MTP weight, bias update speed; functions of the step."""

import math

from mla_lm.config import BalanceConfig, LossConfig, OptimConfig


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


def bias_speed(step: int, *, cfg: BalanceConfig, max_steps: int) -> float:
    """Bias update speed gamma at `step`: linear to 0 over the last `bias_decay_fraction` of steps.

    DeepSeek-V3 kept 1e-3 for 14.3 of 14.8 T tokens, then 0; a short run must move faster at first.
    """
    decay_steps = max(1.0, cfg.bias_decay_fraction * max_steps)
    return cfg.bias_update_speed * min(1.0, max(0, max_steps - step) / decay_steps)
