"""The three losses of DeepSeek-V3: next token, multi-token prediction, sequence balance.

Pure functions of tensors; they know neither the model nor how the losses are weighted into one.
"""

import torch.nn.functional as F
from torch import Tensor

from mla_lm.data.batch import IGNORED
from mla_lm.model.moe import Routing


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats: logits (B, T, V), targets (B, T) int64 -> float32 scalar.

    Targets that are `IGNORED` do not count; 0 where none does.
    """
    nats = F.cross_entropy(
        logits.float().flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return nats / (targets != IGNORED).sum().clamp(min=1)


def mtp_targets(labels: Tensor, depth: int, documents: Tensor | None = None) -> Tensor:
    """What depth k predicts: labels (B, T + 1) -> (B, T - k), at position i label i + k + 1.

    With documents (B, T + 1) it is `IGNORED` unless i and i + k + 1 lie in the same one.
    """
    targets = labels[:, depth + 1 :]
    if documents is None:
        return targets
    return targets.where(documents[:, : -depth - 1] == documents[:, depth + 1 :], IGNORED)


def sequence_balance_loss(routing: Routing) -> Tensor:
    """Balance within each sequence (arXiv 2412.19437, eq. 17-20), before its weight alpha.

    The top-K indicator uses the unbiased scores, ungrouped; gradient flows through the mean
    scores P only. Float32 scalar, mean over sequences; 1 at perfect balance.
    """
    n_tokens, n_experts = routing.scores.shape[1:]
    top_k = routing.experts.shape[-1]
    share = routing.scores / routing.scores.sum(dim=-1, keepdim=True)  # (B, T, E)
    chosen = routing.scores.detach().topk(top_k, dim=-1).indices.flatten(1)  # (B, T * K)
    counts = F.one_hot(chosen, n_experts).sum(dim=1)  # (B, E)
    frequency = counts * (n_experts / (top_k * n_tokens))
    return (frequency * share.mean(dim=1)).sum(dim=-1).mean()
