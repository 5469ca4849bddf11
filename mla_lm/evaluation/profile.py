"""Part `profile`: KV cache bytes per token, speed of prefill and decoding."""

import statistics
import time

import torch

from mla_lm.model import Transformer

BATCHES = (1, 8)
NEW = 16  # tokens to decode
ROUNDS = 3


@torch.no_grad()
def profile(model: Transformer) -> dict[str, float]:
    """`prefill/CONTEXT/BATCH` and `decode/CONTEXT/BATCH`, median tokens per second.

    `cache/bytes_per_token` is measured, not computed.
    """
    longest = model.cfg.max_seq_len
    contexts = sorted({max(1, longest // 4), max(1, longest // 2), max(1, longest - NEW)})
    n_new = min(NEW, longest - contexts[-1])
    metrics = {"cache/bytes_per_token": model.new_cache(1, longest).n_bytes / longest}
    for context in contexts:
        for batch in BATCHES:
            prefill, decode = zip(
                *(_seconds(model, context, batch, n_new) for _ in range(ROUNDS)), strict=True
            )
            at = f"{context}/{batch}"
            metrics[f"prefill/{at}"] = batch * context / statistics.median(prefill)
            if n_new:
                metrics[f"decode/{at}"] = batch * n_new / statistics.median(decode)
    return metrics


def _seconds(model: Transformer, context: int, batch: int, n_new: int) -> tuple[float, float]:
    """Of prefill, and of decoding `n_new` tokens."""
    device = model.embed.weight.device
    tokens = torch.randint(model.cfg.vocab_size, (batch, context), device=device)
    cache = model.new_cache(batch, context + n_new)

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    started = now()
    hidden = model(tokens, cache=cache, logits=False).hidden[:, -1:]
    read = now()
    for _ in range(n_new):
        token = model.lm_head(hidden).argmax(-1)
        hidden = model(token, cache=cache, logits=False).hidden
    return read - started, now() - read
