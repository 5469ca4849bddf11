"""Language-model metrics summed over tokens, so that batch size and padding cannot change them.

Loss, perplexity, bits per byte and loss by position are those of the text's own tokens: a document
separator stands for no byte, so its nats are left out too. (The loss that training minimises is
over all targets.) B batch, T tokens, V vocabulary.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mla_lm.data.batch import IGNORED, Batch
from mla_lm.objective.losses import mtp_targets

N_SUMS = 5  # nats, tokens, bytes of text, right answers, answers


def loss_sums(logits: Tensor, labels: Tensor, byte_lengths: Tensor) -> Tensor:
    """Nats, tokens, bytes, right answers and answers by position: (T, N_SUMS) float64, on the CPU.

    logits (B, T, V), labels (B, T), where `IGNORED` does not count, byte_lengths (at most V,) the
    bytes of text behind each id that is a token.
    """
    flat = logits.float().flatten(0, 1)
    nats = F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="none")
    matches = exact_matches(logits[..., : len(byte_lengths)], labels)  # padding is never chosen
    found = (*text_sums(nats.view_as(labels), labels, byte_lengths), *matches)
    sums = torch.stack([each.float() for each in found], dim=-1)  # (B, T, N_SUMS)
    return sums.cpu().double().sum(0)  # in this order: Apple GPUs have no float64


def text_sums(nats: Tensor, labels: Tensor, byte_lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nats, whether it counts, and bytes of each label that is the text's own; 0 for the others.

    nats and labels have one shape, byte_lengths is as in `loss_sums`.
    """
    counted = labels != IGNORED
    n_bytes = byte_lengths[labels.where(counted, 0)] * counted
    own = n_bytes > 0
    return nats.where(own, 0), own, n_bytes


def exact_matches(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where an answer begins whose every token is the greedy choice, and where any does.

    logits (B, T, V), labels (B, T); an answer is a run of labels that are not `IGNORED`.
    Both (B, T) bool.
    """
    counted = labels != IGNORED
    starts = counted & ~F.pad(counted, (1, 0))[:, :-1]
    answer = starts.flatten().cumsum(dim=0)  # which answer a token belongs to, from 1
    wrong = counted & (logits.argmax(dim=-1) != labels)
    of = (answer - 1).clamp(min=0)
    missed = torch.zeros_like(answer).scatter_reduce(0, of, wrong.flatten().long(), "amax")
    return starts & (missed[of] == 0).view_as(starts), starts


def summarize(sums: Tensor, *, graded: bool) -> dict[str, float]:
    """The metrics of summed `loss_sums`; `val/exact_match` only where answers are graded."""
    *spent, n_right, n_answers = sums.tolist()
    exact_match = {"val/exact_match": n_right / n_answers} if graded else {}
    return text_metrics("val", *spent) | exact_match


def text_metrics(stage: str, nats: float, n_tokens: float, n_bytes: float) -> dict[str, float]:
    """`STAGE/loss` in nats per token, `STAGE/perplexity` and `STAGE/bpb` of a text."""
    loss = nats / n_tokens
    perplexity = math.exp(min(loss, 700.0))
    named = {"loss": loss, "perplexity": perplexity, "bpb": bits_per_byte(nats, n_bytes)}
    return {f"{stage}/{name}": value for name, value in named.items()}


def bits_per_byte(nats: float, n_bytes: float) -> float:
    """The nats of a text as bits, over its bytes; both may be means per token."""
    return nats / math.log(2) / max(n_bytes, 1e-9)


def kept_drafts(drafts: Tensor, greedy: Tensor, batch: Batch, *, depth: int) -> Tensor:
    """Number of drafts (B, T - depth) that equal the main model's choice (B, T), and of all: (2,).

    Drafts whose target is `IGNORED` are left out. int64.
    """
    counted = mtp_targets(batch.labels, depth, batch.documents) != IGNORED
    return torch.stack([(counted & (drafts == greedy[:, depth:])).sum(), counted.sum()])
