"""Language-model metrics summed over tokens, so that batch size and padding cannot change them.

B batch, T tokens, V vocabulary, L MoE layers, E experts.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from mla_lm import balance
from mla_lm.model import Transformer


def loss_sums(logits: Tensor, targets: Tensor, byte_lengths: Tensor) -> Tensor:
    """Nats, tokens and bytes of text over a batch: (3,) float64.

    logits (B, T, V), targets (B, T), byte_lengths (V,) the bytes of text behind each id.
    """
    nats = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
    n_bytes = byte_lengths[targets].sum()
    return torch.stack([nats.double(), nats.new_tensor(targets.numel()), n_bytes]).double()


def summarize(sums: Tensor) -> dict[str, float]:
    """Mean loss in nats a token, perplexity, and bits per byte, from summed `loss_sums`."""
    nats, n_tokens, n_bytes = sums.tolist()
    return {
        "val/loss": nats / n_tokens,
        "val/perplexity": math.exp(min(nats / n_tokens, 700.0)),
        "val/bpb": nats / math.log(2) / n_bytes,
    }


@torch.no_grad()
def evaluate(
    model: Transformer, batches: Iterable[Tensor], byte_lengths: Tensor
) -> tuple[dict[str, float], Tensor | None]:
    """Metrics by name, and the expert load (L, E) of a model with experts.

    batches (B, T + 1). `mtp/acceptance_k` is teacher-forced: the share of positions where the
    draft of depth k for a token equals the main model's own greedy choice for it.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    agreed = torch.zeros(model.cfg.mtp_depth, 2, dtype=torch.int64)  # accepted drafts, drafts
    load: Tensor | None = None
    for batch in batches:
        batch = batch.to(model.embed.weight.device)
        out = model(batch[:, :-1])
        sums += loss_sums(out.logits, batch[:, 1:], byte_lengths).cpu()
        greedy = out.logits.argmax(dim=-1)  # position i: the choice for token i + 1
        for depth, hidden in enumerate(out.mtp, start=1):
            drafts = model.lm_head(hidden).argmax(dim=-1)  # position i: for token i + 1 + depth
            accepted = (drafts == greedy[:, depth:]).sum()
            agreed[depth - 1] += torch.tensor([int(accepted), drafts.numel()])
        if out.routing:
            batch_load = balance.expert_load(out.routing).cpu()
            load = batch_load if load is None else load + batch_load

    metrics = summarize(sums)
    for depth, (accepted, drafts) in enumerate(agreed.tolist(), start=1):
        metrics[f"mtp/acceptance_{depth}"] = accepted / max(1, drafts)
    if load is not None:
        metrics["moe/max_violation"] = float(balance.max_violation(load).mean())
        metrics["moe/dead_experts"] = float(balance.dead_experts(load))
    return metrics, load
