"""What a checkpoint is worth: loss, bits per byte, MTP acceptance, expert load."""

from mla_lm.evaluation.language_model import evaluate

__all__ = ["evaluate"]
