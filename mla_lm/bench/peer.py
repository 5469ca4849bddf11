"""The peer: `transformers`' DeepseekV3ForCausalLM with our weights."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mla_lm.interop import config_dict, to_hugging_face, write_shards
from mla_lm.model import Transformer

EXPERTS = ("eager", "grouped_mm")  # its ways to run experts


def write_peer(model: Transformer, folder: Path) -> None:
    """A folder that `load_peer` reads."""
    (folder / "config.json").write_text(json.dumps(config_dict(model.cfg)))
    tensors = to_hugging_face(model.state_dict(), model.cfg)
    write_shards(tensors, folder, dtype=torch.float32, max_bytes=10**10)


def load_peer(folder: Path, experts: str, dtype: torch.dtype = torch.float32) -> Any:
    """The model, with one way to run its experts."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers.DeepseekV3ForCausalLM.from_pretrained(
        folder, dtype=dtype, experts_implementation=experts
    )


@torch.inference_mode()
def greedy(model: Any, prompt: Tensor) -> Iterator[int]:
    """Ids behind a prompt (1, T), one forward pass with a KV cache for each."""
    import transformers

    cache, ids = transformers.DynamicCache(config=model.config), prompt
    while True:
        out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        ids = out.logits.argmax(-1)
        yield int(ids)
