"""Decoding with KV caches: prompts of any lengths in one batch, with or without MTP drafts.

One loop serves both: a step runs the main model once on the newest token and the k drafts after it
(k = 0: plain decoding). `verify` accepts a prefix of the drafts so that the output is distributed
as it is without drafts, and `truncate` cuts each row's caches back to the accepted tokens.

B rows, D = n_drafts, V tokens to choose from. A row of n tokens has n - 1 of them in the cache.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mla_lm.config import ModelConfig
from mla_lm.errors import UserError
from mla_lm.generation.sampling import Sampling, choose
from mla_lm.generation.speculation import Drafter, verify
from mla_lm.machine import kernels_for
from mla_lm.model import Transformer


@dataclass
class Counts:
    """Work done after the prompts, summed over rows."""

    drafted: list[int]  # steps that verified a draft of depth 1, 2, ..., D
    accepted: list[int]  # steps that accepted it
    steps: int = 0  # forward passes of the main model
    tokens: int = 0  # emitted by those steps

    def add(self, n_accepted: list[int], *, n_drafts: int, n_tokens: int) -> None:
        """One step: the drafts accepted in each row, those per row, and the tokens emitted."""
        self.steps += len(n_accepted)
        self.tokens += n_tokens
        for depth in range(n_drafts):
            self.drafted[depth] += len(n_accepted)
            self.accepted[depth] += sum(n > depth for n in n_accepted)

    @property
    def tokens_per_step(self) -> float:
        """1 without drafts, at most 1 + D."""
        return self.tokens / max(1, self.steps)

    @property
    def acceptance(self) -> list[float]:
        """Fraction of drafts accepted, by depth."""
        return [n / max(1, of) for n, of in zip(self.accepted, self.drafted, strict=True)]


class Decoder:
    """An iterator of `{row: new ids}`, one step at a time, until every row has ended.

    A row ends with the id `stop`, after `max_new_tokens`, one token past the context, or by
    `finish`. `first` (B, at most V) bool limits a row's first new token to the ids it marks.
    Raises UserError for an empty prompt, one longer than the context, or options out of range.
    """

    def __init__(
        self,
        model: Transformer,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampling: Sampling,
        stop: int | None = None,
        n_drafts: int = 0,
        seed: int = 0,
        first: Tensor | None = None,
    ) -> None:
        _check(model.cfg, prompts, max_new_tokens=max_new_tokens, n_drafts=n_drafts)
        self.model, self.sampling, self.stop, self.n_drafts = model, sampling, stop, n_drafts
        self.first = first
        self.rows = list(range(len(prompts)))  # rows still running, in batch order
        self.lengths = [len(prompt) for prompt in prompts]
        context = model.cfg.max_seq_len
        self.ends = [min(length + max_new_tokens, context + 1) for length in self.lengths]
        self.capacity = min(max(self.ends), context)

        device = model.embed.weight.device
        self.generator = torch.Generator(device).manual_seed(seed)
        width = max(self.ends) + 2 * n_drafts
        padded = [[*prompt, *[0] * (width - len(prompt))] for prompt in prompts]
        self.tokens = torch.tensor(padded, device=device)  # (B, width)
        self.cache = model.new_cache(len(prompts), self.capacity)
        self.drafter = Drafter(model, len(prompts), self.capacity, n_drafts) if n_drafts else None
        self.counts = Counts([0] * n_drafts, [0] * n_drafts)

    def __iter__(self) -> Iterator[dict[int, list[int]]]:
        if self.rows:
            with kernels_for(len(self.rows) * max(self.lengths), self.cache.dtype):
                new = self._prefill()
            yield new
        while self.rows:
            n_drafts = self._n_useful_drafts()
            with kernels_for(len(self.rows) * (n_drafts + 1), self.cache.dtype):
                new = self._step(n_drafts)
            yield new

    def run(self) -> list[list[int]]:
        """The new ids of each row, once all have ended."""
        rows: list[list[int]] = [[] for _ in self.rows]
        for new in self:
            for row, ids in new.items():
                rows[row] += ids
        return rows

    def finish(self, row: int) -> None:
        """End a row early; the others continue without it."""
        if row in self.rows:
            self._select([index for index, other in enumerate(self.rows) if other != row])

    @torch.inference_mode()
    def _prefill(self) -> dict[int, list[int]]:
        """Prefill with the prompts, padded on the right, and draw each row's first token."""
        out = self.model(self.tokens[:, : max(self.lengths)], cache=self.cache, logits=False)
        if self.drafter is not None:
            self.drafter.store(out.mtp_input, [0] * len(self.rows))
        last = torch.tensor(self.lengths, device=self.tokens.device) - 1
        logits = self.model.lm_head(out.hidden[torch.arange(len(last)), last])
        logits = self.model.of_tokens(logits)  # (B, V)
        if self.first is not None:
            allowed = F.pad(self.first, (0, logits.shape[-1] - self.first.shape[-1]))
            logits = logits.masked_fill(~allowed, -torch.inf)
        chosen, _ = choose(logits, self.sampling, self.generator)
        return self._commit([[token] for token in chosen.tolist()])

    @torch.inference_mode()
    def _step(self, n_drafts: int) -> dict[int, list[int]]:
        """Draft, verify in one forward pass, emit the accepted drafts and one token more."""
        draft = None
        if self.drafter is not None and n_drafts:
            draft = self.drafter.propose(self.tokens, self.lengths, self.sampling, self.generator)
        newest = torch.tensor(self.lengths, device=self.tokens.device) - 1
        positions = newest.unsqueeze(1) + torch.arange(n_drafts + 1, device=newest.device)
        tokens = self.tokens.gather(1, positions)  # (B, k + 1)
        out = self.model(tokens, cache=self.cache)
        assert out.logits is not None
        logits = self.model.of_tokens(out.logits)
        if self.drafter is not None:
            self.drafter.store(out.mtp_input, [length - 1 for length in self.lengths])
        draft = logits[:, :0] if draft is None else draft[:, :n_drafts]
        n_accepted, following = verify(logits, draft, tokens[:, 1:], self.sampling, self.generator)
        accepted, drafts = n_accepted.tolist(), tokens[:, 1:].tolist()
        rows = zip(drafts, accepted, following.tolist(), strict=True)
        emitted = self._commit([[*ids[:n], token] for ids, n, token in rows])
        self.counts.add(accepted, n_drafts=n_drafts, n_tokens=sum(map(len, emitted.values())))
        return emitted

    def _n_useful_drafts(self) -> int:
        """Limited by the context left to the longest row and by what any row may still emit."""
        left = max(self.ends[row] - n for row, n in zip(self.rows, self.lengths, strict=True))
        return min(self.n_drafts, self.capacity - max(self.lengths), left - 1)

    def _commit(self, new: list[list[int]]) -> dict[int, list[int]]:
        """Append each row's new tokens, truncate the cache to them, drop the rows that end."""
        emitted = {}
        running = []
        for index, (row, ids) in enumerate(zip(self.rows, new, strict=True)):
            length, end = self.lengths[index], self.ends[row]
            ids = ids[: end - length]
            if self.stop in ids:
                ids = ids[: ids.index(self.stop) + 1]
            self.tokens[index, length : length + len(ids)] = torch.tensor(ids)
            self.lengths[index] = length + len(ids)
            emitted[row] = ids
            if self.lengths[index] < end and self.stop not in ids:
                running.append(index)
        self.cache.truncate([length - 1 for length in self.lengths])
        self._select(running)
        return emitted

    def _select(self, indices: list[int]) -> None:
        """Continue with these rows of the batch only."""
        if len(indices) == len(self.rows):
            return
        self.rows = [self.rows[index] for index in indices]
        self.lengths = [self.lengths[index] for index in indices]
        self.tokens = self.tokens[indices]
        self.first = None if self.first is None else self.first[indices]
        self.cache.reorder(indices)
        if self.drafter is not None:
            self.drafter.reorder(indices)


def generate(
    model: Transformer,
    tokens: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop: int | None = None,
    n_drafts: int = 0,
    seed: int = 0,
) -> Tensor:
    """Continue tokens (B, T) by up to `max_new_tokens`: (B, T + n) int64.

    Temperature 0 is greedy. A row ends with the id `stop`, which also pads it. The MTP modules
    draft `n_drafts` tokens per step, which changes the speed and not the distribution.
    Raises UserError, a ValueError, as `Decoder` does, and ValueError as `Sampling` does.
    """
    prompts = tokens.tolist()
    decoder = Decoder(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p, min_p),
        stop=stop,
        n_drafts=n_drafts,
        seed=seed,
    )
    rows = [prompt + new for prompt, new in zip(prompts, decoder.run(), strict=True)]
    longest = max(map(len, rows))
    padded = [[*row, *[stop] * (longest - len(row))] for row in rows]
    return torch.tensor(padded, device=tokens.device)


def _check(
    cfg: ModelConfig, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, n_drafts: int
) -> None:
    if not prompts or not all(prompts):
        raise UserError("an empty prompt: give at least one token")
    longest = max(map(len, prompts))
    if longest > cfg.max_seq_len:
        raise UserError(f"a prompt of {longest} tokens exceeds model.max_seq_len={cfg.max_seq_len}")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens}: must be at least 1")
    if not 0 <= n_drafts <= cfg.mtp_depth:
        raise UserError(f"n_drafts={n_drafts}: must be at most model.mtp_depth={cfg.mtp_depth}")
