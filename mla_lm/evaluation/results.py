"""`metrics.json`: what was measured of a checkpoint, and under which conditions."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mla_lm import checkpoint_file
from mla_lm.atomic import replacing
from mla_lm.config import EvalConfig
from mla_lm.evaluation.subject import Subject
from mla_lm.machine import environment


def write_results(
    subject: Subject, cfg: EvalConfig, metrics: Mapping[str, Any], *, data: Sequence[str]
) -> Path:
    """The file, with `metrics` in it; other results of the same conditions stay.

    `data` are the words that named another text than the run's own.
    """
    suffix = f"-context-{cfg.context}" if cfg.context else ""
    target = subject.folder / f"metrics{suffix}.json"
    conditions = {
        "ckpt": subject.path.name,
        "sha256": checkpoint_file.digest_of(subject.path) if subject.path.is_file() else None,
        "precision": subject.precision,
        "limit": cfg.limit,
        "seed": cfg.seed,
        "seq_len": cfg.context or subject.run.data.seq_len,
        "data": list(data),
        "environment": environment(subject.precision, subject.device),
    }
    before = _read(target)
    same = all(before.get(key) == value for key, value in conditions.items())
    if not same or conditions["sha256"] is None:  # other weights, for all that is known
        before = {}
    content = {**before, **conditions, **metrics}
    with replacing(target) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
    return target


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
