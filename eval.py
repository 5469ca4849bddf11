"""Evaluate a checkpoint: `python eval.py ckpt=PATH [key=value]`; `--help` shows examples."""

from typing import Any

from mla_lm import cli
from mla_lm.config import EvalConfig
from mla_lm.config.words import DATA


def evaluate(cfg: EvalConfig, overrides: list[str]) -> None:
    """Write `metrics.json` into the folder of the run and print the same as a table.

    What the file holds of the same checkpoint under the same conditions stays; with `context` its
    name ends in that.
    """
    from mla_lm.evaluation import metrics_table, parts
    from mla_lm.evaluation.results import write_results
    from mla_lm.evaluation.subject import load_subject
    from mla_lm.machine import autocast, keep_freed_memory

    keep_freed_memory()
    data = [word for word in overrides if word.startswith(DATA)]
    bundles = parts.read_bundles(cfg)
    subject = load_subject(cfg, data_words=data)
    metrics: dict[str, float] = {}
    more: dict[str, Any] = {}
    load = None
    with autocast(subject.precision, subject.device):
        if "lm" in cfg.parts:
            metrics, load, more = parts.language_model(subject, cfg)
        metrics |= parts.speaking(subject, cfg)
        metrics |= parts.tasks(subject, bundles)
        metrics |= parts.harness(subject, cfg)

    metrics_table(metrics, load, list(subject.model.routers()))
    print(f"written to {write_results(subject, cfg, {**metrics, **more}, data=data)}")


if __name__ == "__main__":
    cli.main(evaluate, name="eval", kind=EvalConfig, passed_on=DATA)
