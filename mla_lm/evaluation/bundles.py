"""Files of questions by the names of the configuration, and what a model makes of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mla_lm.config import BundleConfig, EvalConfig
from mla_lm.data.shards import digest
from mla_lm.errors import UserError
from mla_lm.evaluation.items import Item, all_pairs, read_items
from mla_lm.evaluation.progress import progress
from mla_lm.evaluation.subject import Subject
from mla_lm.evaluation.tasks import evaluate_task


class Bundle(NamedTuple):
    """Questions, what stands between what is given and what is scored, and the file's SHA-256."""

    items: list[Item]
    delimiter: str
    sha256: str


def read_bundles(cfg: EvalConfig) -> dict[str, Bundle]:
    """The questions of each of `cfg.tasks`; UserError for a file that cannot be used."""
    found: dict[str, Bundle] = {}
    for name in cfg.tasks:
        bundle = cfg.bundles.get(name) or BundleConfig(path=name, delimiter=" ")
        folder = Path(cfg.tasks_dir if name in cfg.bundles else "")
        path = (folder / bundle.path).expanduser()
        items = read_items(path, limit=cfg.limit)
        stem = Path(name).name.removesuffix(".gz").removesuffix(".jsonl")
        if stem in found:
            raise UserError(f"tasks={name}: another of them is called {stem}")
        found[stem] = Bundle(items, bundle.delimiter, digest(path))
    return found


def evaluate_bundles(subject: Subject, bundles: Mapping[str, Bundle]) -> dict[str, Any]:
    """`task/NAME/METRIC` of each, scored by likelihood."""
    metrics: dict[str, Any] = {}
    for name, (items, delimiter, sha256) in bundles.items():
        with progress(name, len(all_pairs(items, "")[0])) as show:
            found = evaluate_task(
                subject.model, subject.tokenizer, items, delimiter=delimiter, show=show
            )
        metrics |= {f"task/{name}/{key}": value for key, value in found.items()}
        metrics[f"task/{name}/sha256"] = sha256
    return metrics
