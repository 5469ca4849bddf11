"""Text to documents to tokens to memory-mapped files to batches; knows nothing of the model."""

from mla_lm.data.batch import Annotator
from mla_lm.data.loader import EvalLoader, TrainLoader
from mla_lm.data.prepare import prepare
from mla_lm.data.prepared import PreparedData
from mla_lm.data.tokenizer import Tokenizer

__all__ = [
    "Annotator",
    "EvalLoader",
    "PreparedData",
    "Tokenizer",
    "TrainLoader",
    "prepare",
]
