"""The losses of DeepSeek-V3 (next token, multi-token prediction, sequence balance) and Switch's.

Pure functions of what a forward pass returns; they know neither the model nor its training.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mla_lm.config import BalanceConfig
from mla_lm.data.batch import IGNORED, Batch
from mla_lm.model import ModelOutput, Routing
from mla_lm.objective.balance import count, of_layer

LOGITS, ON_GPU = 2**23, 2**27  # per chunk: a GPU launches as many kernels for a small one
HALF_ROWS = 256  # per chunk in float16, whose largest number is 65504
IN_CACHE = 2**19  # per softmax on a CPU, to stay in its cache


def loss_terms(
    out: ModelOutput,
    batch: Batch,
    head: Tensor,
    weights: BalanceConfig,
    n_targets: Tensor | None = None,
    over_ranks: Callable[[Tensor], Tensor] = lambda means: means,
) -> tuple[dict[str, Tensor], Tensor]:
    """Unweighted terms: `ce`, `mtp` (mean over depths), and the balance losses that have a weight.

    head (V, dim). `n_targets` (1 + depths,) is the mean of `count_targets` over the micro-batches
    and ranks of the optimizer step, by default of this batch alone: each term is scaled so that its
    mean over them is the mean over the targets of the whole step. `over_ranks` averages over all
    ranks, without gradient. The second result are the nats of each target of the main model (B, T).
    """
    targets = targets_by_depth(batch, len(out.mtp))
    if n_targets is None:
        n_targets = over_ranks(count_targets(batch, len(out.mtp)))
    (ce, nats), *ahead = [
        head_loss(hidden, head, of_depth, count)
        for hidden, of_depth, count in zip((out.hidden, *out.mtp), targets, n_targets, strict=True)
    ]
    terms = {"ce": ce}
    if ahead:
        terms["mtp"] = torch.stack([loss for loss, _ in ahead]).mean()
    counted = batch.input_counted
    if out.routing and weights.sequence_loss_weight:
        by_layer = [sequence_balance_loss(r, counted) for r in out.routing]
        terms["sequence_balance"] = torch.stack(by_layer).sum()
    if out.routing and weights.switch_loss_weight:
        by_layer = [switch_balance_loss(r, counted, over_ranks) for r in out.routing]
        terms["switch_balance"] = torch.stack(by_layer).sum()
    return terms, nats


def targets_by_depth(batch: Batch, mtp_depth: int) -> list[Tensor]:
    """Targets of the main model, then of each MTP depth."""
    depths = range(1, mtp_depth + 1)
    ahead = [mtp_targets(batch.labels, depth, batch.documents) for depth in depths]
    return [batch.labels[:, 1:], *ahead]


def count_targets(batch: Batch, mtp_depth: int) -> Tensor:
    """How many of `targets_by_depth` count: (1 + mtp_depth,) float32."""
    targets = targets_by_depth(batch, mtp_depth)
    return torch.stack([n_counted(of_depth) for of_depth in targets]).float()


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats: logits (B, T, V), targets (B, T) int64 -> float32 scalar.

    Targets that are `IGNORED` do not count; 0 where none does.
    """
    nats = F.cross_entropy(
        logits.float().flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return nats / n_counted(targets).clamp(min=1)


def head_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, n_targets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`next_token_loss` of the logits hidden @ weight.T, computed in chunks of rows.

    hidden (B, T, dim), weight (V, dim), targets (B, T) int64 -> float32 scalar, the sum over
    `n_targets`, or over those of `targets` that count; and the nats of each target (B, T), 0 where
    it does not count, without gradient.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    rows = hidden.flatten(0, -2), weight, targets.flatten()
    nats, each = HeadLoss.apply(*rows)  # type: ignore[no-untyped-call]
    n = n_counted(targets) if n_targets is None else n_targets  # a mean may lie between 0 and 1
    return nats / n.where(n > 0, 1), each.view_as(targets)


def n_counted(targets: Tensor) -> Tensor:
    """How many targets are not `IGNORED`."""
    return (targets != IGNORED).sum()


class HeadLoss(torch.autograd.Function):
    """Summed cross-entropy of N rows through the head, in chunks of rows.

    Forward computes the gradient too, in the buffer of the logits; backward only scales it.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """hidden (N, dim), weight (V, dim), targets (N,) -> float32 scalar, and nats (N,)."""
        nats, by_row = hidden.new_zeros((), dtype=torch.float32), []
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        most = ON_GPU if hidden.device.type == "cuda" else LOGITS
        n_rows = max(1, most // len(weight))
        if hidden.dtype == torch.float16:  # sums over more rows overflow at any loss scale
            n_rows = min(n_rows, HALF_ROWS)
        for x, grad_x, target in zip(
            hidden.split(n_rows), grad_hidden.split(n_rows), targets.split(n_rows), strict=True
        ):
            logits = x @ weight.T  # (n, V)
            counted = target != IGNORED
            by_row.append(_to_gradient(logits, target.where(counted, 0)).where(counted, 0))
            nats += by_row[-1].sum()
            if any(ctx.needs_input_grad):
                counted = counted.unsqueeze(1)
                torch.mm(logits, weight, out=grad_x).mul_(counted)
                grad_weight += logits.T @ (x * counted)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.dtype = weight.dtype
        each = torch.cat(by_row)
        ctx.mark_non_differentiable(each)
        return nats, each

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        half = grad_hidden.dtype == torch.float16  # in which a scaled grads[0] may be infinite
        exact = grad_hidden.float() if half else grad_hidden
        exact = exact * grads[0].type_as(exact)
        return exact.type_as(grad_hidden), (grad_weight * grads[0]).to(ctx.dtype), None


def _to_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """Overwrite logits (n, V) with the gradient of their cross-entropies; return those (n,).

    With m the highest logit of a row, its highest probability is exp(m - logsumexp).
    """
    nats = []
    n_rows = max(1, IN_CACHE // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    for part, target in zip(logits.split(n_rows), targets.split(n_rows), strict=True):
        exact, place = part.float(), target.unsqueeze(1)
        probabilities = exact.softmax(-1)
        log_of_sum = exact.amax(-1, keepdim=True) - probabilities.amax(-1, keepdim=True).log()
        nats.append(log_of_sum - exact.gather(1, place))
        right = probabilities.gather(1, place)
        part.copy_(probabilities.scatter_(1, place, right - 1))
    return torch.cat(nats).squeeze(1)


def mtp_targets(labels: Tensor, depth: int, documents: Tensor | None = None) -> Tensor:
    """Targets of MTP depth k: labels (B, T + 1) -> (B, T - k), at position i label i + k + 1.

    With documents (B, T + 1) it is `IGNORED` unless i and i + k + 1 lie in the same one.
    """
    targets = labels[:, depth + 1 :]
    if documents is None:
        return targets
    return targets.where(documents[:, : -depth - 1] == documents[:, depth + 1 :], IGNORED)


def sequence_balance_loss(routing: Routing, counted: Tensor | None = None) -> Tensor:
    """Balance within each sequence (arXiv 2412.19437, eq. 17-20), before its weight alpha.

    The top-K indicator uses the unbiased scores, ungrouped; gradient flows through the mean
    scores P only. counted (B, T) bool is False for padding. Float32 scalar, mean over sequences;
    1 at perfect balance.
    """
    chosen = routing.scores.detach().topk(routing.experts.shape[-1], dim=-1).indices
    counts, shares = _sums(routing, chosen, counted)
    return _agreement(counts, shares, chosen.shape[-1]).mean()


def switch_balance_loss(
    routing: Routing,
    counted: Tensor | None = None,
    over_ranks: Callable[[Tensor], Tensor] = lambda counts: counts,
) -> Tensor:
    """Balance over the batch (arXiv 2101.03961, eq. 4-6), before its weight: for top-K, E f.P.

    f is the fraction of choices per expert, P the mean normalised score, over all tokens of the
    forward pass. Float32 scalar; 1 at perfect balance. `over_ranks` averages choices (E,) over all
    ranks, so that the mean loss of the ranks is that of their whole micro-batch. It is not linear
    in the tokens: under gradient accumulation it is the mean over micro-batches, each balanced by
    itself, which is stricter than balance over the step.
    """
    counts, shares = _sums(routing, routing.experts, counted)
    counts = over_ranks(counts.sum(dim=0).float())
    return _agreement(counts, shares.sum(dim=0), routing.experts.shape[-1])


def _sums(routing: Routing, chosen: Tensor, counted: Tensor | None) -> tuple[Tensor, Tensor]:
    """Choices and normalised scores summed over each row's tokens, both (B, E)."""
    counted = of_layer(routing, counted)
    share = routing.scores / routing.scores.sum(dim=-1, keepdim=True)  # (B, T, E)
    if counted is not None:
        share = share * counted.unsqueeze(-1)
    return count(chosen, share.shape[-1], counted), share.sum(dim=1)


def _agreement(counts: Tensor, shares: Tensor, top_k: int) -> Tensor:
    """E sum_i f_i P_i from the choices and summed scores (..., E) of n tokens, K choices each.

    f_i = counts_i / (K n), P_i = shares_i / n.
    """
    n_choices = counts.sum(dim=-1)  # K n; a mean over ranks may lie between 0 and 1
    n_choices = n_choices.where(n_choices > 0, 1)
    scale = counts.shape[-1] * top_k / n_choices.square()
    return scale * (counts * shares).sum(dim=-1)
