"""The parts of an evaluation by name: each takes the subject and returns metrics by name.

Numbers are printed and logged; lists and digests are only stored.
"""

from collections.abc import Callable
from typing import Any

from mla_lm.config import EvalConfig
from mla_lm.evaluation import samples
from mla_lm.evaluation.language_model import language_model
from mla_lm.evaluation.long_context import long_context
from mla_lm.evaluation.profile import profile
from mla_lm.evaluation.subject import Subject

PARTS: dict[str, Callable[[Subject, EvalConfig], dict[str, Any]]] = {
    "lm": language_model,
    "long_context": long_context,
    "speculation": samples.speculation,
    "code": samples.code,
    "profile": lambda subject, _: profile(subject.model),
}
