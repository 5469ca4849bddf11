"""Part `lm`: language-model metrics of a text, summed over tokens, so that batches do not matter.

B batch, T tokens, V vocabulary, L MoE layers, E experts, Q kinds of tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise, repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mla_lm.config import EvalConfig
from mla_lm.data.batch import Annotator
from mla_lm.data.loader import EvalLoader, Stream
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.evaluation.figures import draw_by_kind, draw_by_position
from mla_lm.evaluation.progress import track
from mla_lm.evaluation.scoring import score, window
from mla_lm.evaluation.subject import Subject
from mla_lm.evaluation.token_kinds import CODE, PROSE, token_kinds
from mla_lm.model import Routing, Transformer
from mla_lm.objective import balance
from mla_lm.objective.metrics import (
    kept_drafts,
    loss_sums,
    summarize,
    text_metrics,
    text_sums,
)

AT_ONCE = 1024  # strides of a sliding context scored together, which limits memory


def language_model(subject: Subject, cfg: EvalConfig) -> Iterator[dict[str, Any]]:
    """Metrics of the validation split; then draws loss by position, experts by kind of token."""
    model, run, tokenizer = subject.model, subject.run, subject.tokenizer
    data, seq_len = subject.data(), cfg.context or run.data.seq_len
    batches = EvalLoader(data.val, seq_len=seq_len, batch_size=cfg.batch_size)
    n_batches = min(len(batches), cfg.limit or len(batches))
    ids = data.val[0 : n_batches * cfg.batch_size * seq_len + 1]
    kinds, names = None, CODE if run.data.kind == "stdlib" else PROSE
    if layers := list(model.routers()):
        of_token = token_kinds(ids, tokenizer, code=names is CODE)
        kinds = EvalLoader(of_token, seq_len=seq_len, batch_size=cfg.batch_size)
    found = evaluate(
        model,
        track(islice(batches, n_batches), "evaluating", total=n_batches),
        torch.from_numpy(tokenizer.byte_lengths).to(subject.device),
        Annotator(run.data, tokenizer),
        kinds=kinds,
        n_kinds=len(names),
    )
    ranges = by_position(found.positions)
    of_text = {"val/loss_by_position": ranges, "val/sha256": data.val_sha256}
    metrics = found.metrics | of_text
    if cfg.stride is not None:
        separator = tokenizer.end_of_text if run.data.mask_documents else None
        metrics |= sliding_loss(model, ids, tokenizer, stride=cfg.stride, separator=separator)
    yield metrics
    done = f"{n_batches} of {len(batches)} batches of {seq_len}"
    print(f"{subject.path}  {subject.precision}  {done}")
    draw_by_position(subject.folder / f"loss_by_position{cfg.suffix}.png", ranges)
    if found.load_by_kind is not None:
        picture = subject.folder / f"expert_kinds{cfg.suffix}.png"
        draw_by_kind(picture, found.load_by_kind, names, layers)
        print(f"which experts take which tokens: {picture}")


class Evaluation(NamedTuple):
    """Metrics by name, loads by kind of token, and `loss_sums`."""

    metrics: dict[str, Any]
    load_by_kind: Tensor | None  # (Q, L, E)
    positions: Tensor  # (T, N_SUMS)


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
    agreed = torch.zeros(model.cfg.mtp_depth, 2, dtype=torch.int64)  # accepted drafts, drafts
    sums, loads, loads_by_kind = [], [], []
    for tokens, kind in zip(batches, repeat(None) if kinds is None else kinds, strict=False):
        batch = annotate(tokens.to(model.embed.weight.device))
        out = model(batch.inputs, documents=batch.input_documents, logits=False)
        choices = []  # at position i for token i + 1
        for logits, labels in model.logits_in_parts(out.hidden, batch.labels[:, 1:]):
            sums.append(loss_sums(logits, labels, byte_lengths))
            choices.append(model.of_tokens(logits).argmax(-1))
        greedy = torch.cat(choices)
        for depth, hidden in enumerate(out.mtp, start=1):
            drafts = model.greedy(hidden)  # for token i + 1 + depth
            agreed[depth - 1] += kept_drafts(drafts, greedy, batch, depth=depth).cpu()
        if out.routing:
            loads.append(balance.expert_load(out.routing, batch.input_counted).sum(dim=1).cpu())
        if out.routing and kind is not None:
            at = kind[:, :-1].to(batch.tokens.device)
            loads_by_kind.append(_load_by_kind(out.routing, at, n_kinds).cpu())

    positions = pad_sequence(sums, batch_first=True).sum(0)
    metrics: dict[str, Any] = summarize(positions.sum(0), graded=annotate.graded)
    for depth, (accepted, drafts) in enumerate(agreed.tolist(), start=1):
        metrics[f"mtp/acceptance_{depth}"] = accepted / max(1, drafts)
    by_kind = torch.stack(loads_by_kind).sum(0) if loads_by_kind else None
    if loads:
        load = torch.stack(loads).sum(0)
        metrics["moe/load"] = load.tolist()
        metrics["moe/max_violation"] = float(balance.max_violation(load).mean())
        metrics["moe/load_entropy"] = float(balance.load_entropy(load).mean())
        metrics["moe/dead_experts"] = float(balance.dead_experts(load).sum())
    return Evaluation(metrics, by_kind, positions)


def _load_by_kind(routing: Sequence[Routing], kinds: Tensor, n_kinds: int) -> Tensor:
    """Tokens of each kind (B, T) that each expert received: (Q, L, E) int64."""

    def received(layer: Routing, kind: int) -> Tensor:
        n_tokens, n_experts = layer.scores.shape[1:]
        return balance.count(layer.experts, n_experts, kinds[:, :n_tokens] == kind).sum(0)

    loads = [received(layer, kind) for kind in range(n_kinds) for layer in routing]
    return torch.stack(loads).unflatten(0, (n_kinds, len(routing)))


def by_position(sums: Tensor) -> list[tuple[int, int, float]]:
    """First and last position and mean loss of 1, 2, 3 to 4, 5 to 8, ... of `loss_sums`."""
    n = len(sums)
    edges = [0, *(2**k for k in range((n - 1).bit_length())), n]
    found = ((i + 1, j, *sums[i:j, :2].sum(0).tolist()) for i, j in pairwise(edges))
    return [(first, last, nats / tokens) for first, last, nats, tokens in found if tokens]


def sliding_loss(
    model: Transformer,
    ids: Stream,
    tokenizer: Tokenizer,
    *,
    stride: int,
    separator: int | None = None,
) -> dict[str, float]:
    """Loss, perplexity and bits per byte of a stream, `stride` tokens at a time.

    Each token has at least `max_seq_len - stride` tokens of context, except at the beginning and
    after a `separator`.
    """
    byte_lengths = torch.from_numpy(tokenizer.byte_lengths)
    sums = torch.zeros(3, dtype=torch.float64)  # nats, tokens, bytes
    longest = model.cfg.max_seq_len
    firsts = range(1, len(ids), min(stride, longest))
    for i in range(0, len(firsts), AT_ONCE):
        requests = [
            request
            for first in firsts[i : i + AT_ONCE]
            for request in window(ids, first, firsts.step, longest=longest, separator=separator)
        ]
        likely = [one for scored in score(model, requests) for one in scored.by_token]
        labels = [token for request in requests for token in request.continuation]
        found = text_sums(-torch.tensor(likely), torch.tensor(labels), byte_lengths)
        sums += torch.stack([each.double().sum() for each in found])
    return {"sliding/stride": stride, **text_metrics("sliding", *sums.tolist())}
