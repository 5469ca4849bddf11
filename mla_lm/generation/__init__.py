"""Text from a model; knows nothing of training."""

from mla_lm.generation.sampling import generate

__all__ = ["generate"]
