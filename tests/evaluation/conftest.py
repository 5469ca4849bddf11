"""Tasks scored without a run, and a text of documents of one length."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mla_lm.config import EvalConfig
from mla_lm.config.compose import compose, validate
from mla_lm.evaluation.harness import load_tasks
from mla_lm.model import Transformer
from tests.interop.random_runs import byte_tokenizer

LENGTH, N_DOCUMENTS = 8, 13  # rows of 8, 16 and 32 cut no document


@cache
def eval_config() -> EvalConfig:
    return validate(EvalConfig, compose("eval", ["ckpt=none"]))


def scored(model: Transformer, *tasks: object, **keys: Any) -> dict[str, Any]:
    """The metrics of tasks by `NAME/METRIC`; `keys` are those of `eval.yaml`."""
    cfg = eval_config().model_copy(update={"tasks": tuple(map(str, tasks)), **keys})
    found = load_tasks(model, byte_tokenizer(), cfg)()
    return {name.removeprefix("task/"): value for name, value in found.items()}


def documents(order: Sequence[int] = range(N_DOCUMENTS)) -> NDArray[np.int64]:
    """Documents of one length, each behind the separator, and one more separator."""
    rows = np.random.default_rng(0).integers(0, 256, (N_DOCUMENTS, LENGTH))
    rows[:, 0] = byte_tokenizer().end_of_text
    return np.append(rows[list(order)].flatten(), byte_tokenizer().end_of_text)
