"""Language-model metrics summed over tokens, so that batch size and padding cannot change them.

B batch, T tokens, V vocabulary, L MoE layers, E experts.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mla_lm import balance, losses
from mla_lm.data.batch import IGNORED, Annotator, Batch
from mla_lm.evaluation.positions import position_sums
from mla_lm.model import Routing, Transformer


class Sums(NamedTuple):
    """What batches add up to; `loss_sums` gives it as a tensor."""

    nats: float
    tokens: float
    bytes: float  # of text
    right: float  # answers whose every token is the greedy choice
    answers: float  # runs of labels that count


N_SUMS = len(Sums._fields)


def loss_sums(logits: Tensor, labels: Tensor, byte_lengths: Tensor) -> Tensor:
    """`Sums` over a batch, (5,) float64; labels that are `IGNORED` do not count.

    logits (B, T, V), labels (B, T), byte_lengths (V,) the bytes of text behind each id.
    """
    flat = logits.float().flatten(0, 1)
    nats = F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="sum")
    counted = labels[labels != IGNORED]
    sums = (nats, nats.new_tensor(counted.numel()), byte_lengths[counted].sum())
    return torch.stack([part.double() for part in (*sums, *exact_matches(logits, labels))])


def bytes_per_target(labels: Tensor, byte_lengths: Tensor) -> Tensor:
    """Mean bytes of text behind the labels (B, T) that are not `IGNORED`: float32 scalar."""
    counted = labels != IGNORED
    lengths = byte_lengths[labels.where(counted, 0)] * counted
    return lengths.sum().float() / counted.sum().clamp(min=1)


def exact_matches(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Answers whose every token is the greedy choice, and all answers: int64 scalars.

    logits (B, T, V), labels (B, T); an answer is a run of labels that are not `IGNORED`.
    """
    counted = labels != IGNORED
    starts = counted & ~F.pad(counted, (1, 0))[:, :-1]
    answer = starts.flatten().cumsum(dim=0)  # which answer a token belongs to, from 1
    wrong = counted & (logits.argmax(dim=-1) != labels)
    missed = torch.zeros_like(answer).index_fill(0, answer[wrong.flatten()] - 1, 1)
    return answer[-1] - missed.sum(), answer[-1]


def summarize(sums: Tensor, *, graded: bool) -> dict[str, float]:
    """Mean loss in nats a token, perplexity and bits per byte, from summed `loss_sums`.

    `val/exact_match`, the share of right answers, only where answers are graded.
    """
    total = Sums(*sums.tolist())
    metrics = {
        "val/loss": total.nats / total.tokens,
        "val/perplexity": math.exp(min(total.nats / total.tokens, 700.0)),
        "val/bpb": total.nats / math.log(2) / total.bytes,
    }
    if graded:
        metrics["val/exact_match"] = total.right / total.answers
    return metrics


class Evaluation(NamedTuple):
    """Metrics by name, the load of experts, and nats and tokens at each position."""

    metrics: dict[str, float]
    load: Tensor | None  # (L, E)
    load_by_kind: Tensor | None  # (Q, L, E)
    positions: Tensor  # (T, 2)


@torch.no_grad()
def evaluate(
    model: Transformer,
    batches: Iterable[Tensor],
    byte_lengths: Tensor,
    annotate: Annotator,
    *,
    kinds: Iterable[Tensor] | None = None,
    n_kinds: int = 0,
) -> Evaluation:
    """Metrics over batches (B, T + 1); kinds (B, T + 1) are those of their tokens, -1 for none.

    `mtp/acceptance_k` is teacher-forced: the share of positions where the draft of depth k for a
    token equals the main model's own greedy choice for it; positions whose target of that depth
    does not count are left out.
    """
    sums = torch.zeros(N_SUMS, dtype=torch.float64)
    agreed = torch.zeros(model.cfg.mtp_depth, 2, dtype=torch.int64)  # accepted drafts, drafts
    load = by_kind = positions = None
    for tokens, kind in zip(batches, repeat(None) if kinds is None else kinds, strict=False):
        batch = annotate(tokens.to(model.embed.weight.device))
        out = model(batch.inputs, documents=batch.input_documents)
        sums += loss_sums(out.logits, batch.labels[:, 1:], byte_lengths).cpu()
        at = position_sums(out.logits, batch.labels[:, 1:]).cpu()
        positions = at if positions is None else _added(positions, at)
        greedy = out.logits.argmax(dim=-1)  # position i: the choice for token i + 1
        for depth, hidden in enumerate(out.mtp, start=1):
            drafts = model.lm_head(hidden).argmax(dim=-1)  # position i: for token i + 1 + depth
            agreed[depth - 1] += kept_drafts(drafts, greedy, batch, depth=depth).cpu()
        if out.routing:
            batch_load = balance.expert_load(out.routing, batch.input_counted).sum(dim=1).cpu()
            load = batch_load if load is None else load + batch_load
        if out.routing and kind is not None:
            found = _load_by_kind(out.routing, kind[:, :-1].to(batch.tokens.device), n_kinds).cpu()
            by_kind = found if by_kind is None else by_kind + found

    metrics = summarize(sums, graded=annotate.graded)
    for depth, (accepted, drafts) in enumerate(agreed.tolist(), start=1):
        metrics[f"mtp/acceptance_{depth}"] = accepted / max(1, drafts)
    if load is not None:
        metrics["moe/max_violation"] = float(balance.max_violation(load).mean())
        metrics["moe/load_entropy"] = float(balance.load_entropy(load).mean())
        metrics["moe/dead_experts"] = float(balance.dead_experts(load).sum())
    assert positions is not None
    return Evaluation(metrics, load, by_kind, positions)


def kept_drafts(drafts: Tensor, greedy: Tensor, batch: Batch, *, depth: int) -> Tensor:
    """How many of the drafts (B, T - depth) are the main model's choice (B, T), and of how many.

    Those whose target does not count are left out. Returns (2,) int64.
    """
    counted = losses.mtp_targets(batch.labels, depth, batch.documents) != IGNORED
    return torch.stack([(counted & (drafts == greedy[:, depth:])).sum(), counted.sum()])


def _added(one: Tensor, other: Tensor) -> Tensor:
    """The sum of tables (n, 2) and (m, 2), the shorter one continued by zeros."""
    one, other = sorted((one, other), key=len)
    return other + F.pad(one, (0, 0, 0, len(other) - len(one)))


def _load_by_kind(routing: Sequence[Routing], kinds: Tensor, n_kinds: int) -> Tensor:
    """Tokens of each kind (B, T) that each expert received: (Q, L, E) int64."""

    def load(layer: Routing, kind: int) -> Tensor:
        n_tokens, n_experts = layer.scores.shape[1:]
        return balance.count(layer.experts, n_experts, kinds[:, :n_tokens] == kind).sum(dim=0)

    return torch.stack(
        [torch.stack([load(layer, kind) for layer in routing]) for kind in range(n_kinds)]
    )
