"""Part `lm`: language-model metrics of a text, summed over tokens, so that batches do not matter.

B batch, T tokens, V vocabulary, L MoE layers, E experts, Q kinds of tokens.
"""

from collections.abc import Iterable, Sequence
from itertools import islice, repeat
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mla_lm.config import EvalConfig
from mla_lm.data.batch import Annotator
from mla_lm.data.loader import EvalLoader
from mla_lm.evaluation.expert_maps import draw_by_kind
from mla_lm.evaluation.positions import by_position, draw_by_position, position_sums, sliding_loss
from mla_lm.evaluation.progress import track
from mla_lm.evaluation.subject import Subject
from mla_lm.evaluation.token_kinds import CODE, PROSE, token_kinds
from mla_lm.model import Routing, Transformer
from mla_lm.objective import balance
from mla_lm.objective.metrics import N_SUMS, kept_drafts, loss_sums, summarize


def language_model(subject: Subject, cfg: EvalConfig) -> dict[str, Any]:
    """Metrics of the validation split; draws loss by position, and experts by kind of token."""
    model, run, tokenizer = subject.model, subject.run, subject.tokenizer
    seq_len = cfg.context or run.data.seq_len
    data = subject.data()
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
    done = f"{n_batches} of {len(batches)} batches of {seq_len}"
    print(f"{subject.path}  {subject.precision}  {done}")
    ranges = by_position(found.positions)
    draw_by_position(subject.folder / f"loss_by_position{cfg.suffix}.png", ranges)
    metrics: dict[str, Any] = {
        **found.metrics,
        "val/loss_by_position": ranges,
        "val/sha256": data.val_sha256,
    }
    if found.load is not None and found.load_by_kind is not None:
        metrics["moe/load"] = found.load.tolist()
        picture = subject.folder / f"expert_kinds{cfg.suffix}.png"
        draw_by_kind(picture, found.load_by_kind, names, layers)
        print(f"which experts take which tokens: {picture}")
    if cfg.stride is not None:
        separator = tokenizer.end_of_text if run.data.mask_documents else None
        metrics |= sliding_loss(model, ids, tokenizer, stride=cfg.stride, separator=separator)
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
    positions = torch.zeros(0, 2, dtype=torch.float64)
    agreed = torch.zeros(model.cfg.mtp_depth, 2, dtype=torch.int64)  # accepted drafts, drafts
    loads: list[Tensor] = []
    loads_by_kind: list[Tensor] = []
    for tokens, kind in zip(batches, repeat(None) if kinds is None else kinds, strict=False):
        batch = annotate(tokens.to(model.embed.weight.device))
        out = model(batch.inputs, documents=batch.input_documents)
        sums += loss_sums(out.logits, batch.labels[:, 1:], byte_lengths).cpu()
        positions = _added(positions, position_sums(out.logits, batch.labels[:, 1:]).cpu())
        greedy = out.logits.argmax(dim=-1)  # position i: the choice for token i + 1
        for depth, hidden in enumerate(out.mtp, start=1):
            drafts = model.lm_head(hidden).argmax(dim=-1)  # position i: for token i + 1 + depth
            agreed[depth - 1] += kept_drafts(drafts, greedy, batch, depth=depth).cpu()
        if out.routing:
            loads.append(balance.expert_load(out.routing, batch.input_counted).sum(dim=1).cpu())
        if out.routing and kind is not None:
            at = kind[:, :-1].to(batch.tokens.device)
            loads_by_kind.append(_load_by_kind(out.routing, at, n_kinds).cpu())

    metrics = summarize(sums, graded=annotate.graded)
    for depth, (accepted, drafts) in enumerate(agreed.tolist(), start=1):
        metrics[f"mtp/acceptance_{depth}"] = accepted / max(1, drafts)
    load = torch.stack(loads).sum(0) if loads else None
    by_kind = torch.stack(loads_by_kind).sum(0) if loads_by_kind else None
    if load is not None:
        metrics["moe/max_violation"] = float(balance.max_violation(load).mean())
        metrics["moe/load_entropy"] = float(balance.load_entropy(load).mean())
        metrics["moe/dead_experts"] = float(balance.dead_experts(load).sum())
    return Evaluation(metrics, load, by_kind, positions)


def _added(one: Tensor, other: Tensor) -> Tensor:
    """The sum of tables (n, 2) and (m, 2), the shorter one continued by zeros."""
    one, other = sorted((one, other), key=len)
    return other + F.pad(one, (0, 0, 0, len(other) - len(one)))


def _load_by_kind(routing: Sequence[Routing], kinds: Tensor, n_kinds: int) -> Tensor:
    """Tokens of each kind (B, T) that each expert received: (Q, L, E) int64."""
    loads = []
    for layer in routing:
        n_tokens, n_experts = layer.scores.shape[1:]
        kind = kinds[:, :n_tokens, None].expand_as(layer.experts)  # (B, T, K)
        cell = (kind * n_experts + layer.experts)[kind >= 0]
        loads.append(cell.bincount(minlength=n_kinds * n_experts).view(n_kinds, n_experts))
    return torch.stack(loads, dim=1)
