"""The three losses of DeepSeek-V3: next token, multi-token prediction, sequence balance.

Pure functions of tensors; they know neither the model nor how the losses are weighted into one.
"""

import torch.nn.functional as F
from torch import Tensor

from mla_lm.model.moe import Routing


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats: logits (B, T, V), targets (B, T) int64 -> float32 scalar."""
    return F.cross_entropy(logits.float().flatten(0, -2), targets.flatten())


def mtp_targets(tokens: Tensor, depth: int) -> Tensor:
    """What depth k predicts: tokens (B, T + 1) -> (B, T - k), at position i token i + k + 1."""
    return tokens[:, depth + 1 :]


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
