"""Text to documents to tokens to memory-mapped files to batches; knows nothing of the model."""

from mla_lm.data.loader import EvalLoader, TrainLoader
from mla_lm.data.shards import PreparedData, prepare
from mla_lm.data.tokenizer import Tokenizer

__all__ = ["EvalLoader", "PreparedData", "Tokenizer", "TrainLoader", "prepare"]
