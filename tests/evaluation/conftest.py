"""Tasks scored without a run."""

from functools import cache
from typing import Any

from mla_lm.config import EvalConfig
from mla_lm.config.compose import compose, validate
from mla_lm.evaluation.harness import load_tasks
from mla_lm.model import Transformer
from tests.interop.random_runs import byte_tokenizer


@cache
def eval_config() -> EvalConfig:
    return validate(EvalConfig, compose("eval", ["ckpt=none"]))


def scored(model: Transformer, *tasks: object, **keys: Any) -> dict[str, Any]:
    """The metrics of tasks by `NAME/METRIC`; `keys` are those of `eval.yaml`."""
    cfg = eval_config().model_copy(update={"tasks": tuple(map(str, tasks)), **keys})
    found = load_tasks(model, byte_tokenizer(), cfg)()
    return {name.removeprefix("task/"): value for name, value in found.items()}
