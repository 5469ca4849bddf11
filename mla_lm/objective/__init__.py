"""What a run minimises and measures: losses, balance, metrics, schedules, optimizer."""

from mla_lm.objective.losses import next_token_loss

__all__ = ["next_token_loss"]
