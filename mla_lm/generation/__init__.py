"""Text from a model; knows nothing of training."""

from mla_lm.generation.sampling import generate
from mla_lm.generation.text import complete

__all__ = ["complete", "generate"]
