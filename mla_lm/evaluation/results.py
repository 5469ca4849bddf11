"""`metrics.json`: what was measured of a checkpoint, and under which conditions; loggers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mla_lm.config import EvalConfig
from mla_lm.config.compose import instantiate, load_config
from mla_lm.errors import UserError, one_line
from mla_lm.evaluation.subject import Subject
from mla_lm.files import replacing
from mla_lm.machine import hardware


def write_results(
    subject: Subject, cfg: EvalConfig, metrics: Mapping[str, Any], *, data_words: Sequence[str]
) -> Path:
    """The file, with `metrics` in it; other results of the same conditions stay.

    `data_words` named another text than the run's own.
    """
    target = subject.folder / f"metrics{cfg.suffix}.json"
    conditions = {
        "ckpt": subject.path.name,
        "step": subject.step,
        "sha256": subject.sha256,
        "precision": subject.precision,
        "limit": cfg.limit,
        "seed": cfg.seed,
        "seq_len": cfg.context or subject.run.data.seq_len,
        "data": list(data_words),
        "environment": hardware(subject.precision).environment,
    }
    before = _read(target)
    texts = {name: value for name, value in metrics.items() if name.endswith("/sha256")}
    other_conditions = any(before.get(key) != value for key, value in conditions.items())
    if other_conditions or any(before.get(name, value) != value for name, value in texts.items()):
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


def make_loggers(subject: Subject, words: Sequence[str]) -> list[Any]:
    """Those that overrides of the `logger` group name, for the run that is evaluated."""
    if not words:
        return []
    cfg = load_config(words, run_dir=str(subject.folder), run_id=subject.run.run_id)
    return instantiate("logger", cfg.logger)


def log_results(
    loggers: Sequence[Any], metrics: Mapping[str, Any], *, step: int, conditions: Sequence[str]
) -> None:
    """Log the numbers under the names of `metrics`, at the step of the checkpoint.

    In front of them stand `conditions` other than those of training. Raises UserError for a logger
    that fails.
    """
    prefix = " ".join(conditions) + "/" if conditions else ""
    numbers = {prefix + name: v for name, v in metrics.items() if isinstance(v, int | float)}
    for logger in loggers:
        try:
            logger.log_metrics(numbers, step=step)
            logger.save()
            logger.finalize("success")
        except Exception as error:  # each has its own
            raise UserError(f"logger: {type(logger).__name__}: {one_line(error)}") from None
