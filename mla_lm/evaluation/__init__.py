"""Metrics of a checkpoint: language modelling, questions, long context, samples, speed."""

from mla_lm.evaluation.language_model import evaluate

__all__ = ["evaluate"]
