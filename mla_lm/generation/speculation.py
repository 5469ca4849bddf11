"""Self-speculative decoding: drafts of the MTP modules, and which of them the model accepts.

At position i, depth k joins the state of depth k - 1 with the embedding of token i + k and predicts
token i + k + 1 (arXiv 2412.19437, section 2.2). In a row of n tokens the newest position is n - 2:
there depth k reads token n - 2 + k, which for k > 1 is itself a draft. Cache entries computed from
drafts are truncated and computed again in the next step, from the accepted tokens.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mla_lm.generation.sampling import Sampling, choose, distribution, draw
from mla_lm.model import Transformer


class Drafter:
    """Proposes D = n_drafts tokens per step from the main model's states of all positions so far.

    B rows, V vocabulary.
    """

    def __init__(self, model: Transformer, batch_size: int, capacity: int, n_drafts: int) -> None:
        self.model, self.capacity = model, capacity
        self.states = model.embed.weight.new_zeros(batch_size, capacity, model.cfg.dim)
        self.caches = [model.new_cache(batch_size, capacity, mtp=True) for _ in range(n_drafts)]

    def store(self, states: Tensor, starts: Sequence[int]) -> None:
        """Keep the main model's `mtp_input` (B, T, dim) at the positions from `starts` on."""
        for row, start in enumerate(starts):
            self.states[row, start : start + states.shape[1]] = states[row]

    def propose(
        self,
        tokens: Tensor,
        lengths: Sequence[int],
        sampling: Sampling,
        generator: torch.Generator,
    ) -> Tensor:
        """Write D drafts after each row's `lengths` tokens; their distributions (B, D, V)."""
        cached = self.caches[0].lengths
        n_new = max(length - 1 - start for length, start in zip(lengths, cached, strict=True))
        cached = [min(start, self.capacity - n_new) for start in cached]  # windows of equal width
        for cache in self.caches:
            cache.truncate(cached)
        rows = torch.arange(len(tokens), device=tokens.device)
        starts = torch.tensor(cached, device=tokens.device)
        ends = torch.tensor(lengths, device=tokens.device)
        window = starts.unsqueeze(1) + torch.arange(n_new, device=tokens.device)  # (B, T)
        newest = ends - 2 - starts  # (B,): index of position n - 2 in the window

        state = self.states[rows.unsqueeze(1), window]
        probabilities = []
        for depth, cache in enumerate(self.caches, start=1):
            following = tokens.gather(1, window + depth)
            state = self.model.mtp_step(depth, state, following, cache=cache)  # (B, T, dim)
            logits = self.model.of_tokens(self.model.lm_head(state[rows, newest]))
            ids, drawn_from = choose(logits, sampling, generator)
            tokens[rows, ends - 1 + depth] = ids
            probabilities.append(drawn_from)
        for cache in self.caches:
            cache.truncate([max(0, length - len(self.caches)) for length in lengths])
        return torch.stack(probabilities, dim=1)

    def reorder(self, rows: Sequence[int]) -> None:
        """Continue with these rows of the batch only."""
        self.states = self.states[list(rows)]
        for cache in self.caches:
            cache.reorder(rows)


def verify(
    logits: Tensor, draft: Tensor, ids: Tensor, sampling: Sampling, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Accept a prefix of k drafts by the model's logits (B, k + 1, V); returns as `accept` does."""
    if sampling.temperature > 0:
        return accept(distribution(logits, sampling), draft, ids, generator)
    best = logits.argmax(dim=-1)  # (B, k + 1)
    n_accepted = (best[:, :-1] == ids).cumprod(dim=-1).sum(dim=-1)
    return n_accepted, best.gather(1, n_accepted.unsqueeze(1)).squeeze(1)


def accept(
    target: Tensor, draft: Tensor, ids: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Rejection sampling (arXiv 2211.17192, algorithm 1): emitted ids are distributed as `target`.

    target (B, k + 1, V) are the model's distributions; the drafts ids (B, k) were drawn from
    draft (B, k, V). Returns the number of drafts each row accepts (B,) and the id after them (B,).
    """
    n_drafts = ids.shape[1]
    p = target[:, :n_drafts].gather(-1, ids.unsqueeze(-1)).squeeze(-1)  # (B, k)
    q = draft.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    chance = torch.rand(q.shape, generator=generator, device=q.device)
    n_accepted = (chance * q < p).cumprod(dim=-1).sum(dim=-1)  # (B,)
    residual = (target - F.pad(draft, (0, 0, 0, 1))).clamp(min=0)  # after k drafts: target itself
    rows = torch.arange(len(ids), device=ids.device)
    weights, full = residual[rows, n_accepted], target[rows, n_accepted]
    weights = weights.where(weights.sum(dim=-1, keepdim=True) > 0, full)  # rounded to zero
    return n_accepted, draw(weights, generator)
