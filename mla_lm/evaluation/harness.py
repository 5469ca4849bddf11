"""A model as lm-evaluation-harness sees it: any of its tasks, scored by this project.

The harness is the optional extra `eval`; it makes the texts and the metrics, nothing else.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mla_lm.config import EvalConfig
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError, one_line
from mla_lm.evaluation.progress import progress
from mla_lm.evaluation.scoring import Request, score
from mla_lm.evaluation.subject import Subject
from mla_lm.generation import Completion, Sampling
from mla_lm.model import Transformer

RESAMPLED = 1000  # times, for the standard error of what has no formula
Answer = TypeVar("Answer")


def evaluate_in_harness(subject: Subject, cfg: EvalConfig) -> dict[str, Any]:
    """`harness/TASK/METRIC` of each of `cfg.harness`."""
    if not cfg.harness:
        return {}
    include, limit = cfg.harness_include, cfg.limit
    found = run_harness(subject.model, subject.tokenizer, cfg.harness, include=include, limit=limit)
    return {f"harness/{name}": value for name, value in found.items()}


def harness_model(model: Transformer, tokenizer: Tokenizer) -> Any:
    """An `lm_eval.api.model.TemplateLM`; contexts that are too long lose their beginning.

    Its `n_truncated` counts them for each task.
    """
    from lm_eval.api.model import TemplateLM

    class Adapter(TemplateLM):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.n_truncated: Counter[str] = Counter()
            self.tasks: list[str] = []  # of the requests that are scored next

        @property
        def eot_token_id(self) -> int:
            return tokenizer.end_of_text

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **_: Any
        ) -> list[int]:
            begin = [] if add_special_tokens is False else [tokenizer.end_of_text]
            return [*begin, *tokenizer.encode(string)]

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
            self.tasks = [request.task_name for request in requests]
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

        def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
            longest = model.cfg.max_seq_len
            asked = [_fitted(context, after, longest) for _, context, after in requests]
            for task, (_, *whole), kept in zip(self.tasks, requests, asked, strict=True):
                self.n_truncated[task] += sum(map(len, whole)) > sum(map(len, kept))
            with progress("harness", len(asked)) as show:
                scores = score(model, asked, show=show)
            return [(one.log_likelihood, one.greedy) for one in scores]

        def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float]:
            return _each(requests, partial(_whole, model, tokenizer))

        def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
            found = _each(requests, partial(_continued, model, tokenizer))
            for request, answer in zip(requests, found, strict=True):
                self.n_truncated[request.task_name] += answer.cut
            return [answer.text for answer in found]

    return Adapter()


def run_harness(
    model: Transformer,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    *,
    include: str | None = None,
    limit: int | None = None,
) -> dict[str, float]:
    """Metrics of its tasks, by `task/metric`; `include` is a folder with tasks of one's own.

    `task/n_truncated` counts texts that were longer than the context. Raises UserError for a task
    that it does not know or cannot load.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UserError('harness: pip install "mla_lm[eval]"') from None
    if include is not None and not Path(include).is_dir():
        raise UserError(f"harness_include={include}: no such folder")
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # to fork beside torch's threads is no good
    adapter = harness_model(model, tokenizer)
    try:
        found = lm_eval.simple_evaluate(
            adapter,
            tasks=list(tasks),
            task_manager=TaskManager(include_path=include),
            limit=limit,
            bootstrap_iters=RESAMPLED,
            verbosity="ERROR",
        )
    except Exception as error:  # the harness, the hub and data sets each raise their own
        raise UserError(f"harness={','.join(tasks)}: {one_line(error)}") from None
    assert found is not None
    results = {
        f"{task}/{_plain(name)}": value
        for task, metrics in found["results"].items()
        for name, value in metrics.items()
        if isinstance(value, float)
    }
    return results | {f"{task}/n_truncated": n for task, n in adapter.n_truncated.items()}


def _plain(name: str) -> str:
    """`acc_stderr,none` is acc_stderr, `acc_stderr,strict` acc,strict_stderr."""
    metric, _, kind = name.partition(",")
    error = "_stderr" if metric.endswith("_stderr") else ""
    filtered = "" if kind == "none" else f",{kind}"
    return metric.removesuffix("_stderr") + filtered + error


def _each(requests: Sequence[Any], answer: Callable[..., Answer]) -> list[Answer]:
    found = []
    with progress("harness", len(requests)) as show:
        for request in requests:
            found.append(answer(*request.args))
            show(1)
    return found


def _fitted(context: Sequence[int], after: Sequence[int], longest: int) -> Request:
    kept = tuple(after[-longest:])
    return Request(tuple(context[-(longest + 1 - len(kept)) :]), kept)


def _whole(model: Transformer, tokenizer: Tokenizer, text: str) -> float:
    """Log-likelihood of a text of any length, in the windows of the harness's own models."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    rolling = get_rolling_token_windows(
        token_list=tokenizer.encode(text),
        prefix_token=tokenizer.end_of_text,
        max_seq_len=model.cfg.max_seq_len,
        context_len=1,
    )
    asked = [Request(tuple(a), tuple(b)) for a, b in map(make_disjoint_window, rolling)]
    return sum(one.log_likelihood for one in score(model, asked))


class Continued(NamedTuple):
    """The text behind a prompt, and whether the prompt was too long."""

    text: str
    cut: bool


def _continued(
    model: Transformer, tokenizer: Tokenizer, prompt: str, options: dict[str, Any]
) -> Continued:
    from lm_eval.models.utils import normalize_gen_kwargs

    options = normalize_gen_kwargs(options)
    until, longest = options.get("until") or [], model.cfg.max_seq_len
    n_new = min(options["max_gen_toks"], longest - 2)
    room = longest - n_new  # `end_of_text` is one of them
    ids = tokenizer.encode(prompt)
    if cut := len(ids) >= room:
        prompt = tokenizer.decode(ids[1 - room :]).lstrip("\ufffd")  # cut inside a character
    completion = Completion(
        model,
        tokenizer,
        [prompt],
        max_new_tokens=n_new,
        sampling=Sampling(options["temperature"]),
        stops=tuple([until] if isinstance(until, str) else until),
    )
    return Continued("".join(piece for _, piece in completion), cut)
