"""The parts of an evaluation: each takes the subject and says its metrics by name."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from mla_lm.config import BundleConfig, EvalConfig
from mla_lm.data import Annotator, EvalLoader
from mla_lm.errors import UserError
from mla_lm.evaluation.expert_maps import draw_by_kind
from mla_lm.evaluation.harness import run_harness
from mla_lm.evaluation.items import Item, all_pairs, read_items
from mla_lm.evaluation.language_model import evaluate
from mla_lm.evaluation.positions import by_position, draw_by_position, sliding_loss
from mla_lm.evaluation.profile import profile
from mla_lm.evaluation.samples import parsed_share, speculation
from mla_lm.evaluation.subject import Subject
from mla_lm.evaluation.tasks import evaluate_task
from mla_lm.evaluation.token_kinds import CODE, PROSE, token_kinds


class Measured(NamedTuple):
    """Metrics for the table, the load of experts (L, E) for another, and what is only stored."""

    metrics: dict[str, float]
    load: Tensor | None
    more: dict[str, Any]


def language_model(subject: Subject, cfg: EvalConfig) -> Measured:
    """Loss, bits per byte, loss by position, MTP acceptance and expert load."""
    model, run, tokenizer = subject.model, subject.run, subject.tokenizer
    seq_len = cfg.context or run.data.seq_len
    data = subject.data()
    batches = EvalLoader(data.val, seq_len=seq_len, batch_size=cfg.batch_size)
    n_batches = min(len(batches), cfg.limit or len(batches))
    kinds, names = None, CODE if run.data.kind == "stdlib" else PROSE
    if layers := list(model.routers()):
        seen = data.val[0 : n_batches * cfg.batch_size * seq_len + 1]
        of_token = token_kinds(seen, tokenizer, code=names is CODE)
        kinds = EvalLoader(of_token, seq_len=seq_len, batch_size=cfg.batch_size)
    with _progress("evaluating", n_batches) as show:
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
    if found.load_by_kind is not None:
        picture = subject.folder / "expert_kinds.png"
        draw_by_kind(picture, found.load_by_kind, names, layers)
        print(f"which experts take which tokens: {picture}")
    ranges = by_position(found.positions)
    draw_by_position(subject.folder / "loss_by_position.png", ranges)
    more: dict[str, Any] = {"val/loss_by_position": ranges}
    if found.load is not None:
        more["moe/load"] = found.load.tolist()
    metrics = found.metrics
    if cfg.stride is not None:
        seen = data.val[0 : n_batches * cfg.batch_size * seq_len + 1]
        with _progress("sliding", -(-(len(seen) - 1) // cfg.stride)) as show:
            metrics = metrics | sliding_loss(model, seen, tokenizer, stride=cfg.stride, show=show)
    return Measured(metrics, found.load, more)


def speaking(subject: Subject, cfg: EvalConfig) -> dict[str, float]:
    """Those of the parts `speculation`, `code` and `profile` that are asked for."""
    model = subject.model
    metrics: dict[str, float] = {}
    if "speculation" in cfg.parts:
        if not model.cfg.mtp_depth:
            raise UserError(f"parts=speculation: {subject.path} has no MTP module to draft with")
        metrics |= speculation(model, subject.data().val)
    if "code" in cfg.parts:
        metrics |= parsed_share(model, subject.tokenizer, seed=cfg.seed)
    return metrics | (profile(model) if "profile" in cfg.parts else {})


class Bundle(NamedTuple):
    """Questions, and what stands between what is given and what is scored."""

    items: list[Item]
    delimiter: str


def read_bundles(cfg: EvalConfig) -> dict[str, Bundle]:
    """The questions of each of `cfg.tasks`; UserError for a file that cannot be used."""
    found: dict[str, Bundle] = {}
    for name in cfg.tasks:
        bundle = cfg.bundles.get(name) or BundleConfig(path=name, delimiter=" ")
        folder = Path(cfg.tasks_dir if name in cfg.bundles else "")
        items = read_items((folder / bundle.path).expanduser(), limit=cfg.limit)
        stem = Path(name).name.removesuffix(".gz").removesuffix(".jsonl")
        if stem in found:
            raise UserError(f"tasks={name}: another of them is called {stem}")
        found[stem] = Bundle(items, bundle.delimiter)
    return found


def tasks(subject: Subject, bundles: Mapping[str, Bundle]) -> dict[str, float]:
    """`task/NAME/METRIC` of each, scored by likelihood."""
    metrics: dict[str, float] = {}
    for name, (items, delimiter) in bundles.items():
        with _progress(name, len(all_pairs(items, "")[0])) as show:
            found = evaluate_task(
                subject.model, subject.tokenizer, items, delimiter=delimiter, show=show
            )
        metrics |= {f"task/{name}/{key}": value for key, value in found.items()}
    return metrics


def harness(subject: Subject, cfg: EvalConfig) -> dict[str, float]:
    """`harness/TASK/METRIC` of each of `cfg.harness`, by lm-evaluation-harness."""
    if not cfg.harness:
        return {}
    include, limit = cfg.harness_include, cfg.limit
    found = run_harness(subject.model, subject.tokenizer, cfg.harness, include=include, limit=limit)
    return {f"harness/{name}": value for name, value in found.items()}


def _told(batches: Iterator[Tensor], show: partial[None]) -> Iterator[Tensor]:
    for batch in batches:
        yield batch
        show(1)


@contextmanager
def _progress(name: str, total: int) -> Iterator[partial[None]]:
    """A bar with the time left, advanced by calling; it goes when all is done."""
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        yield partial(bar.advance, bar.add_task("", total=total))
