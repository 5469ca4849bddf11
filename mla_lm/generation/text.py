"""From a prompt to text: tokenize, sample, decode."""

import torch

from mla_lm.data.tokenizer import Tokenizer
from mla_lm.generation.sampling import generate
from mla_lm.model import Transformer


def complete(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
) -> str:
    """`prompt` and its continuation, up to the end of the document or `max_new_tokens`."""
    device = model.embed.weight.device
    ids, first = tokenizer.encode_prompt(prompt)
    tokens = generate(
        model,
        torch.tensor([ids], device=device),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        stop=tokenizer.end_of_text,
        seed=seed,
        first=None if first is None else torch.from_numpy(first).to(device),
    )
    return tokenizer.decode(tokens[0].tolist())
