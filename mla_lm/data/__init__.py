"""Text to documents to tokens to memory-mapped files to batches; knows nothing of the model.

What needs torch is loaded on first use, so that a tokenizer can be looked at without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mla_lm.data.prepare import prepare
from mla_lm.data.prepared import PreparedData
from mla_lm.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mla_lm.data.batch import Annotator
    from mla_lm.data.loader import EvalLoader, TrainLoader

_HOME = {
    "Annotator": "mla_lm.data.batch",
    "EvalLoader": "mla_lm.data.loader",
    "TrainLoader": "mla_lm.data.loader",
}
__all__ = [
    "Annotator",
    "EvalLoader",
    "PreparedData",
    "Tokenizer",
    "TrainLoader",
    "prepare",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
