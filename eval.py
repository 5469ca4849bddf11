"""Evaluate a checkpoint: `python eval.py ckpt=PATH [key=value]`; `--help` shows examples."""

from collections.abc import Sequence
from typing import Any

from mla_lm.config import EvalConfig, cli
from mla_lm.config.compose import compose, instantiate_loggers, load_config, validate
from mla_lm.errors import output_may_end

DATA = ("data=", "data.", "data/")  # how overrides of that group begin
LOGGER = ("logger=", "logger.", "logger/")


def configured(overrides: Sequence[str]) -> EvalConfig:
    """What the overrides ask for, those of data and loggers apart."""
    return validate(EvalConfig, compose("eval", overrides))


@output_may_end()
def evaluate(cfg: EvalConfig, overrides: list[str]) -> None:
    """Write `metrics.json` into the folder of the run; then log and print the same numbers.

    The file keeps what it holds of the same checkpoint and conditions; `context=N` has its own.
    """
    cli.require_path("ckpt", cfg.ckpt)
    if cfg.tasks_include:
        cli.require_path("tasks_include", cfg.tasks_include)
    print(f"loading {cfg.ckpt}", flush=True)

    from mla_lm.evaluation.harness import load_tasks
    from mla_lm.evaluation.parts import PARTS
    from mla_lm.evaluation.results import log_results, results_file, show_results, write_results
    from mla_lm.evaluation.subject import load_subject
    from mla_lm.machine import autocast, keep_freed_memory

    keep_freed_memory()
    of_data, of_logger = ([o for o in overrides if o.startswith(g)] for g in (DATA, LOGGER))
    subject = load_subject(cfg, data_overrides=of_data)
    score_tasks = load_tasks(subject.model, subject.tokenizer, cfg)
    own = {"run_dir": str(subject.folder), "run_id": subject.run.run_id}
    loggers = instantiate_loggers(load_config(of_logger, **own).logger) if of_logger else []
    target = results_file(subject, cfg)
    metrics: dict[str, Any] = {}
    measured = []
    try:
        with autocast(subject.precision, subject.device):
            for name in dict.fromkeys(cfg.parts):
                print(f"measuring {name}", flush=True)
                part = PARTS[name](subject, cfg)
                metrics |= next(part)
                measured.append(part)
                write_results(target, subject, cfg, metrics)
            metrics |= score_tasks()
        write_results(target, subject, cfg, metrics)
        changed = [
            o for o in overrides if o in subject.text or o.startswith(("context=", "limit="))
        ]
        log_results(loggers, metrics, step=subject.step, conditions=changed)
    finally:
        show_results(metrics, measured, layers=list(subject.model.routers()))
    print(f"written to {target}")


if __name__ == "__main__":
    cli.main(evaluate, name="eval", configured=configured, passed_on=DATA + LOGGER)
