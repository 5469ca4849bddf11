"""The peer of the suites: `transformers`' DeepseekV3ForCausalLM with our weights."""

import json
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mla_lm.bench.report import timed
from mla_lm.interop import config_dict, to_hugging_face, write_shards
from mla_lm.model import Transformer


class Peer:
    """One way to run it: a number format and an implementation of the experts."""

    EXPERTS = ("eager", "grouped_mm")

    def __init__(self, folder: Path, number_format: str, experts: str) -> None:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.model = transformers.DeepseekV3ForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, number_format), experts_implementation=experts
        ).eval()

    def continuation(self, prompt: Tensor, n_tokens: int) -> list[int]:
        """Ids that greedily follow a prompt (1, T)."""
        return list(self._generate(prompt, n_tokens)[0, prompt.shape[1] :].tolist())

    def prefill(self, prompt: Tensor) -> Callable[[], float]:
        """Seconds from a prompt to its first new token."""
        return lambda: timed(lambda: self._generate(prompt, 1))

    def decoding(self, prompt: Tensor, n_tokens: int) -> Callable[[], float]:
        """Seconds a token over `n_tokens` behind a prompt, which is read once."""
        import transformers

        held = transformers.DynamicCache(config=self.model.config)
        with torch.inference_mode():
            self.model(prompt[:, :-1], past_key_values=held, use_cache=True, logits_to_keep=1)

        def median_token() -> float:
            clock = Clock()
            self._generate(prompt, n_tokens + 1, past_key_values=held, streamer=clock)
            held.crop(prompt.shape[1] - 1 - held.get_seq_length())
            times = clock.times[1:]  # the first put is the prompt
            return statistics.median(b - a for a, b in pairwise(times))

        return median_token

    def _generate(self, prompt: Tensor, n_tokens: int, **more: Any) -> Any:
        with torch.inference_mode():
            return self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=n_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                **more,
            )


class Clock:
    """A streamer that notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: object) -> None:
        """Called by `generate` for the prompt and for each token."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Called by `generate` at the end."""


def write_peer(model: Transformer, folder: Path) -> None:
    """A folder that `from_pretrained` reads."""
    (folder / "config.json").write_text(json.dumps(config_dict(model.cfg)))
    tensors = to_hugging_face(model.state_dict(), model.cfg)
    write_shards(tensors, folder, dtype=torch.float32, max_bytes=10**10)
