"""Language-model metrics summed over tokens, so that batch size and padding cannot change them.

B batch, T tokens, V vocabulary, L MoE layers, E experts.
"""

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mla_lm.data.batch import Annotator
from mla_lm.evaluation.positions import position_sums
from mla_lm.model import Routing, Transformer
from mla_lm.objective import balance
from mla_lm.objective.metrics import N_SUMS, kept_drafts, loss_sums, summarize


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
