"""Autoregressive sampling with temperature and top-k."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mla_lm.model import Transformer


@torch.no_grad()
def generate(
    model: Transformer,
    tokens: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    stop: int | None = None,
    seed: int = 0,
    first: Tensor | None = None,
) -> Tensor:
    """Continue tokens (B, T) by up to `max_new_tokens`: (B, T + n) int64.

    Temperature 0 is greedy. Generation ends when every row has produced the id `stop`. Beyond
    `max_seq_len` the model sees the last tokens only. `first` (at most V,) bool limits the first
    new token to the ids it marks. Raises ValueError on an empty prompt.
    """
    if tokens.shape[1] == 0:
        raise ValueError("an empty prompt: give at least one token")
    generator = torch.Generator(tokens.device).manual_seed(seed)
    stopped = torch.zeros(tokens.shape[0], dtype=torch.bool, device=tokens.device)
    for position in range(max_new_tokens):
        out = model(tokens[:, -model.cfg.max_seq_len :], logits=False, mtp=False)
        logits = model.lm_head(out.hidden[:, -1]).float()  # (B, V)
        if position == 0 and first is not None:
            allowed = F.pad(first, (0, logits.shape[-1] - len(first)))
            logits = logits.masked_fill(~allowed, -torch.inf)
        choice = _sample(logits, temperature=temperature, top_k=top_k, generator=generator)
        tokens = torch.cat((tokens, choice), dim=1)
        stopped |= choice[:, 0] == stop
        if stop is not None and bool(stopped.all()):
            break
    return tokens


def _sample(
    logits: Tensor, *, temperature: float, top_k: int | None, generator: torch.Generator
) -> Tensor:
    """One id a row, (B, V) -> (B, 1)."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    logits = logits - logits.amax(dim=-1, keepdim=True)  # a tiny temperature then gives no inf
    return torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)
