"""The parts of an evaluation by name.

A part takes the subject and returns metrics by name. Numbers are printed and logged; lists and
digests are only stored.
"""

from collections.abc import Callable
from typing import Any

from mla_lm.config import EvalConfig
from mla_lm.evaluation import language_model, long_context, samples
from mla_lm.evaluation.subject import Subject

PARTS: dict[str, Callable[[Subject, EvalConfig], dict[str, Any]]] = {
    "lm": language_model.language_model,
    "long_context": long_context.long_context,
    "speculation": samples.speculation,
    "code": lambda subject, cfg: samples.code(subject.model, subject.tokenizer, seed=cfg.seed),
    "profile": lambda subject, _: samples.profile(subject.model),
}
