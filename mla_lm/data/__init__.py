"""Text to documents to tokens to memory-mapped files to batches; knows nothing of the model.

The names here need no torch; batches are in `loader` and `batch`.
"""

from mla_lm.data.preparation import prepare
from mla_lm.data.prepared import PreparedData
from mla_lm.data.tokenizer import Tokenizer

__all__ = ["PreparedData", "Tokenizer", "prepare"]
