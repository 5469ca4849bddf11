"""The parts of an evaluation: each takes the subject and says its metrics by name."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from mla_lm.config import BundleConfig, EvalConfig
from mla_lm.data import Annotator, EvalLoader
from mla_lm.evaluation.expert_maps import draw_by_kind
from mla_lm.evaluation.harness import run_harness
from mla_lm.evaluation.items import all_pairs, read_items
from mla_lm.evaluation.language_model import Evaluation, evaluate
from mla_lm.evaluation.subject import Subject
from mla_lm.evaluation.tasks import evaluate_task
from mla_lm.evaluation.token_kinds import CODE, PROSE, token_kinds


def language_model(subject: Subject, cfg: EvalConfig) -> Evaluation:
    """Loss, bits per byte, MTP acceptance and expert load on the validation split."""
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
    return found


def tasks(subject: Subject, cfg: EvalConfig) -> dict[str, float]:
    """`TASK/METRIC` of each of `cfg.tasks`, scored by likelihood."""
    metrics: dict[str, float] = {}
    for name in cfg.tasks:
        bundle = cfg.bundles.get(name) or BundleConfig(path=name, delimiter=" ")
        folder = Path(cfg.tasks_dir if name in cfg.bundles else "")
        items = read_items((folder / bundle.path).expanduser(), limit=cfg.limit)
        n_pairs = len(all_pairs(items, "")[0])
        with _progress(name, n_pairs) as show:
            found = evaluate_task(
                subject.model, subject.tokenizer, items, delimiter=bundle.delimiter, show=show
            )
        stem = Path(name).name.removesuffix(".gz").removesuffix(".jsonl")
        metrics |= {f"{stem}/{key}": value for key, value in found.items()}
    return metrics


def harness(subject: Subject, cfg: EvalConfig) -> dict[str, float]:
    """`TASK/METRIC` of each of `cfg.harness`, texts and metrics by lm-evaluation-harness."""
    if not cfg.harness:
        return {}
    include, limit = cfg.harness_include, cfg.limit
    return run_harness(subject.model, subject.tokenizer, cfg.harness, include=include, limit=limit)


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
