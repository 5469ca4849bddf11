"""Text from a model: sampling, KV caches, speculative decoding; knows nothing of training."""

from mla_lm.generation.decoding import Counts, Decoder, generate
from mla_lm.generation.sampling import Sampling
from mla_lm.generation.text import Completion, TextStream

__all__ = ["Completion", "Counts", "Decoder", "Sampling", "TextStream", "generate"]
