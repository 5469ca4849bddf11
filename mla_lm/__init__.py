"""Small DeepSeek-V3-style language models: MLA, loss-free balanced MoE, multi-token prediction.

The public names are loaded on first use, so that `import mla_lm` costs nothing.
"""

import os
from importlib import import_module
from typing import Any

# Before torch is imported: what it lacks on Apple GPUs then runs on the CPU, with one warning.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

_HOME = {
    "load_config": "mla_lm.config.compose",
    "load_checkpoint": "mla_lm.checkpoint.find",
    "Transformer": "mla_lm.model",
    "generate": "mla_lm.generation",
}
__all__ = ["Transformer", "generate", "load_checkpoint", "load_config"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
