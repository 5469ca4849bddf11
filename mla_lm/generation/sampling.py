"""From logits to ids: temperature, top-k, nucleus (arXiv 1904.09751), min-p (arXiv 2407.01082).

Distributions are explicit, because speculation accepts drafts by them; greedy decoding is the
distribution with all probability on the best token.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from mla_lm.errors import UserError


@dataclass(frozen=True, config=ConfigDict(allow_inf_nan=False))
class Sampling:
    """Temperature 0 is greedy; the filters apply in the order of the fields.

    Raises pydantic's ValidationError, a ValueError, for a value out of range.
    """

    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_k: Annotated[int, Field(gt=0)] | None = None  # the k most probable tokens; None: off
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0  # nucleus: smallest set with this probability
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0  # drop tokens below min_p x the top one


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities (..., V) float32 of the tokens after temperature and filters."""
    if sampling.temperature == 0:
        return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()
    logits = logits.float()
    logits = logits - logits.amax(dim=-1, keepdim=True)  # no inf at a tiny temperature
    logits = logits / min(max(sampling.temperature, 1e-38), 1e38)  # float32 range
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        smallest = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if sampling.top_p < 1:
        best, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
        beyond = best.cumsum(dim=-1) - best >= sampling.top_p
        logits = logits.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
    probabilities = logits.softmax(dim=-1)
    if sampling.min_p > 0:
        floor = sampling.min_p * probabilities.amax(dim=-1, keepdim=True)
        probabilities = probabilities.where(probabilities >= floor, 0)
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    return probabilities


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sample one id per row (B,) int64 from logits (B, V); also its distribution (B, V)."""
    probabilities = distribution(logits, sampling)
    if sampling.temperature == 0:
        return logits.argmax(dim=-1), probabilities
    return draw(probabilities, generator), probabilities


def draw(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Sample one id per row (B,) int64 by weights (B, V), which need not sum to 1.

    Raises UserError for weights that are not finite.
    """
    if not torch.isfinite(weights).all():
        raise UserError("the model's logits are not finite: its weights diverged, or are damaged")
    return torch.multinomial(weights, 1, generator=generator).squeeze(-1)
