"""The parts of an evaluation: each takes the subject and says its metrics by name.

Numbers are for people and loggers; lists and digests are only stored.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from mla_lm.config import EvalConfig
from mla_lm.data import Annotator, EvalLoader
from mla_lm.errors import UserError
from mla_lm.evaluation import long_context, samples
from mla_lm.evaluation.expert_maps import draw_by_kind
from mla_lm.evaluation.language_model import evaluate
from mla_lm.evaluation.positions import by_position, draw_by_position, sliding_loss
from mla_lm.evaluation.profile import profile
from mla_lm.evaluation.progress import progress
from mla_lm.evaluation.subject import Subject
from mla_lm.evaluation.token_kinds import CODE, PROSE, token_kinds

Found = dict[str, Any]


def _language_model(subject: Subject, cfg: EvalConfig) -> Found:
    model, run, tokenizer = subject.model, subject.run, subject.tokenizer
    seq_len = cfg.context or run.data.seq_len
    data = subject.data()
    ids = data.val
    batches = EvalLoader(ids, seq_len=seq_len, batch_size=cfg.batch_size)
    n_batches = min(len(batches), cfg.limit or len(batches))
    seen = ids[0 : n_batches * cfg.batch_size * seq_len + 1]
    kinds, names = None, CODE if run.data.kind == "stdlib" else PROSE
    if layers := list(model.routers()):
        of_token = token_kinds(seen, tokenizer, code=names is CODE)
        kinds = EvalLoader(of_token, seq_len=seq_len, batch_size=cfg.batch_size)
    with progress("evaluating", n_batches) as show:
        found = evaluate(
            model,
            _told(islice(batches, n_batches), show),
            torch.from_numpy(tokenizer.byte_lengths).to(subject.device),
            Annotator(run.data, tokenizer),
            kinds=kinds,
            n_kinds=len(names),
        )
    done = f"{n_batches} of {len(batches)} batches of {seq_len}"
    print(f"{subject.path}  {subject.precision}  {done}")
    ranges = by_position(found.positions)
    draw_by_position(subject.folder / f"loss_by_position{cfg.suffix}.png", ranges)
    metrics: Found = {
        **found.metrics,
        "val/loss_by_position": ranges,
        "val/sha256": data.val_sha256,
    }
    if found.load is not None:
        metrics["moe/load"] = found.load.tolist()
    if found.load_by_kind is not None:
        picture = subject.folder / f"expert_kinds{cfg.suffix}.png"
        draw_by_kind(picture, found.load_by_kind, names, layers)
        print(f"which experts take which tokens: {picture}")
    if cfg.stride is not None:
        separator = tokenizer.end_of_text if run.data.mask_documents else None
        with progress("sliding", len(seen) - 1) as show:
            metrics |= sliding_loss(
                model, seen, tokenizer, stride=cfg.stride, separator=separator, show=show
            )
    return metrics


def _told(batches: Iterator[Tensor], show: partial[None]) -> Iterator[Tensor]:
    for batch in batches:
        yield batch
        show(1)


def _long_context(subject: Subject, cfg: EvalConfig) -> Found:
    model, tokenizer, data = subject.model, subject.tokenizer, subject.data()
    n_texts = min(cfg.limit or long_context.N_TEXTS, long_context.N_TEXTS)
    options: dict[str, Any] = {"seed": cfg.seed, "n_texts": n_texts}
    synthetic = subject.run.data.kind == "synthetic"
    trials = []
    if not synthetic:
        trials = long_context.passkey_trials(model.cfg, tokenizer, data.val, **options)
    plain = long_context.without_yarn(model)
    models = {"": model} if plain is None else {"": model, "without_yarn/": plain}
    metrics: Found = {}
    for prefix, asked in models.items():
        with progress(f"{prefix}passkey", sum(len(t.requests) for t in trials)) as show:
            found = long_context.passkey(asked, trials, show=show) if trials else {}
        with progress(f"{prefix}recall", len(long_context.lengths(model.cfg))) as show:
            found |= long_context.recall(
                asked, tokenizer, synthetic=synthetic, show=show, **options
            )
        metrics |= {prefix + name: value for name, value in found.items()}
    if not metrics:
        raise UserError(f"parts=long_context: {model.cfg.max_seq_len} tokens hold no question")
    if trials:
        titles = ("",) if plain is None else ("YaRN", "without YaRN")
        by_depth = [metrics[f"{prefix}passkey/by_depth"] for prefix in models]
        picture = subject.folder / f"passkey-{model.cfg.max_seq_len}.png"
        long_context.draw_passkeys(picture, dict(zip(titles, by_depth, strict=True)))
        print(f"pass keys found by length and depth: {picture}")
    return metrics | {"val/sha256": data.val_sha256}


def _speculation(subject: Subject, cfg: EvalConfig) -> Found:
    if not subject.model.cfg.mtp_depth:
        raise UserError(f"parts=speculation: {subject.path} has no MTP module to draft with")
    data = subject.data()
    return {**samples.speculation(subject.model, data.val), "val/sha256": data.val_sha256}


def _code(subject: Subject, cfg: EvalConfig) -> Found:
    return samples.parsed_share(subject.model, subject.tokenizer, seed=cfg.seed)


def _profile(subject: Subject, cfg: EvalConfig) -> Found:
    return profile(subject.model)


PARTS: dict[str, Callable[[Subject, EvalConfig], Found]] = {
    "lm": _language_model,
    "long_context": _long_context,
    "speculation": _speculation,
    "code": _code,
    "profile": _profile,
}
