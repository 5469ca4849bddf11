"""The parts of an evaluation by name.

A part yields its metrics by name; what it does when asked for more is for people: pictures. Numbers
are printed and logged; lists and digests are only stored.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mla_lm.config import EvalConfig
from mla_lm.evaluation import language_model, long_context, samples
from mla_lm.evaluation.subject import Subject

Part = Callable[[Subject, EvalConfig], Iterator[Mapping[str, Any]]]


def _metrics_only(measured: Callable[[Subject, EvalConfig], Mapping[str, Any]]) -> Part:
    def part(subject: Subject, cfg: EvalConfig) -> Iterator[Mapping[str, Any]]:
        yield measured(subject, cfg)

    return part


PARTS: dict[str, Part] = {
    "lm": language_model.language_model,
    "long_context": long_context.long_context,
    "speculation": _metrics_only(samples.speculation),
    "code": _metrics_only(lambda of, cfg: samples.code(of.model, of.tokenizer, seed=cfg.seed)),
    "profile": _metrics_only(lambda of, _: samples.profile(of.model)),
}
