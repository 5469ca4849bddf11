"""Tasks by lm-evaluation-harness, scored by this project.

Its own tasks and question files alike: the harness (the optional extra `eval`) builds the texts and
computes the metrics, `scoring.py` the likelihoods.
"""

import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mla_lm.config import EvalConfig, QuestionFile
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError, one_line
from mla_lm.evaluation.progress import track
from mla_lm.evaluation.questions import Question, read_questions
from mla_lm.evaluation.scoring import encode, score, score_texts, window
from mla_lm.files import digest
from mla_lm.generation import Completion, Sampling
from mla_lm.model import Transformer

RESAMPLED = 1000  # bootstrap samples for the standard error of metrics without a formula
FEWSHOT_SEED = 1234  # the default of the harness's own command line
Metrics = dict[str, Any]


def load_tasks(model: Transformer, tokenizer: Tokenizer, cfg: EvalConfig) -> Callable[[], Metrics]:
    """A function that scores `cfg.tasks` and returns `task/NAME/METRIC`.

    Raises UserError for a task that is unknown or cannot be loaded, and for a bad question file.
    """
    if not cfg.tasks:
        return dict
    print("loading lm-evaluation-harness", flush=True)
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UserError('tasks: need lm-evaluation-harness: pip install "mla_lm[eval]"') from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    adapter = harness_model(model, tokenizer)
    tasks: dict[str, Any] = {}  # for the harness: a task, or the name of one of its own
    metrics: Metrics = {}
    for task in cfg.tasks:
        file = _question_file(task, cfg)
        name = Path(task).name.removesuffix(".gz").removesuffix(".jsonl") if file else task
        if name in tasks:
            raise UserError(f"tasks={task}: another task is called {name}")
        tasks[name] = task
        if file:
            questions = read_questions(Path(file.path), limit=cfg.limit)
            tasks[name] = _question_task(name, questions, file.delimiter, adapter.n_tokens)
            chances = [1 / q.n_choices if q.n_choices else 0.0 for q in questions]
            metrics[f"task/{name}/chance"] = sum(chances) / len(chances)
            metrics[f"task/{name}/sha256"] = digest(Path(file.path))
    own = [task for task in tasks.values() if isinstance(task, str)]
    try:
        manager = TaskManager(include_path=cfg.tasks_include, include_defaults=bool(own))
        loaded = manager.load(list(tasks.values()))
    except Exception as error:  # the harness, the hub and data sets each raise their own
        raise UserError(f"tasks={','.join(own)}: {one_line(error)}") from None
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(FEWSHOT_SEED)
    return lambda: metrics | _score(adapter, loaded, limit=cfg.limit)


def _question_file(task: str, cfg: EvalConfig) -> QuestionFile | None:
    """The file that a name of `eval.yaml` or a path means; None for a task of the harness."""
    if file := cfg.question_files.get(task):
        return file.model_copy(update={"path": str(Path(cfg.tasks_dir, file.path))})
    if task.removesuffix(".gz").endswith(".jsonl"):
        return QuestionFile(path=task, delimiter=" ")
    return None


def _question_task(
    name: str, questions: Sequence[Question], delimiter: str, n_tokens: Counter[str]
) -> Any:
    """An `lm_eval` task; `n_tokens` will hold the scored tokens of each task."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    class QuestionTask(ConfigurableTask):  # type: ignore[misc]
        def process_results(self, doc: dict[str, Any], results: Any) -> dict[str, Any]:
            found: dict[str, Any] = super().process_results(doc, results)
            by_paradigm = {f"acc/{doc['paradigm']}": found["acc"]} if doc.get("paradigm") else {}
            return found | by_paradigm

    def perplexity(likelihoods: Sequence[float]) -> float:
        """Per token; the harness's own is per continuation."""
        return math.exp(min(700.0, -sum(likelihoods) / n_tokens[name]))

    shape = type(questions[0])
    aggregation = {"perplexity": {"aggregation": perplexity}}
    rows = Dataset.from_list([question.model_dump() for question in questions])
    return QuestionTask(
        config={
            "task": name,
            "custom_dataset": lambda: {"test": rows},
            "test_split": "test",
            "metric_list": [{"metric": m, **aggregation.get(m, {})} for m in shape.metrics],
            "target_delimiter": delimiter,  # with choices; where there are none, the next line
            "doc_to_target": lambda doc: delimiter + doc["continuation"],
            **shape.task,
        }
    )


def _score(adapter: Any, tasks: Any, *, limit: int | None) -> Metrics:
    """`task/NAME/METRIC` of loaded tasks.

    `n_truncated` counts the texts that are longer than the context and lose their beginning,
    `n_shortened` the answers that may have fewer tokens than the task allows.
    """
    import lm_eval

    print(f"scoring {len(tasks['tasks'])} tasks", flush=True)
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # the bootstrap must not fork beside threads
    found = lm_eval.evaluate(
        adapter, tasks, limit=limit, bootstrap_iters=RESAMPLED, log_samples=False
    )
    assert found is not None
    metrics = {
        f"task/{task}/{_plain(name)}": value
        for task, by_name in found["results"].items()
        for name, value in by_name.items()
        if isinstance(value, float)
    }
    for task, counts in found["n-samples"].items():
        metrics[f"task/{task}/n_items"] = counts["effective"]
        metrics[f"task/{task}/n_truncated"] = adapter.n_truncated[task]
        if task in adapter.n_shortened:
            metrics[f"task/{task}/n_shortened"] = adapter.n_shortened[task]
    return metrics


def _plain(name: str) -> str:
    """`acc_stderr,none` is acc_stderr, `acc_stderr,strict` acc,strict_stderr."""
    metric, _, kind = name.partition(",")
    error = "_stderr" if metric.endswith("_stderr") else ""
    filtered = "" if kind == "none" else f",{kind}"
    return metric.removesuffix("_stderr") + filtered + error


def harness_model(model: Transformer, tokenizer: Tokenizer) -> Any:
    """An `lm_eval.api.model.LM`; `n_truncated`, `n_shortened` and `n_tokens` count by task."""
    from lm_eval.api.model import LM

    class Adapter(LM):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.n_truncated: Counter[str] = Counter()
            self.n_shortened: Counter[str] = Counter()
            self.n_tokens: Counter[str] = Counter()

        def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
            pairs = [request.args for request in requests]
            encoded = encode(pairs, tokenizer, max_seq_len=model.cfg.max_seq_len)
            for request, (ids, truncated) in zip(requests, encoded, strict=True):
                self.n_truncated[request.task_name] += truncated
                self.n_tokens[request.task_name] += len(ids.continuation)
            scores = score(model, [ids for ids, _ in encoded])
            return [(one.log_likelihood, one.greedy) for one in scores]

        def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float]:
            longest = model.cfg.max_seq_len
            texts = []
            for request in requests:  # in the windows of the harness's own models
                ids = np.array([tokenizer.end_of_text, *tokenizer.encode(*request.args)])
                firsts = range(1, len(ids), longest)
                texts.append([r for i in firsts for r in window(ids, i, longest, longest=longest)])
            scores = score_texts(model, texts)
            return [sum(part.log_likelihood for part in text) for text in scores]

        def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
            answers = []
            for request in track(requests, "generating"):
                answer, truncated, shortened = _continued(model, tokenizer, *request.args)
                self.n_truncated[request.task_name] += truncated
                self.n_shortened[request.task_name] += shortened
                answers.append(answer)
            return answers

    return Adapter()


def _continued(
    model: Transformer, tokenizer: Tokenizer, prompt: str, options: dict[str, Any]
) -> tuple[str, bool, bool]:
    """The text that follows a prompt; whether the prompt was cut, and whether the text may be.

    A task that wants more tokens than half the context gets fewer, and its prompt stays whole where
    it fits.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    options = normalize_gen_kwargs(options)
    longest, n_new = model.cfg.max_seq_len, options["max_gen_toks"]
    ids = tokenizer.encode(prompt)
    left = longest - 1 - len(ids)  # `end_of_text` is one of the prompt
    if shortened := n_new > longest // 2 and n_new > left:  # else little of the prompt would stay
        n_new = left if left > 0 else longest // 2
    room = longest - n_new
    if truncated := len(ids) >= room:
        prompt = tokenizer.decode(ids[1 - room :]).lstrip("\ufffd")  # cut inside a character
    completion = Completion(
        model,
        tokenizer,
        [prompt],
        max_new_tokens=n_new,
        sampling=Sampling(options.get("temperature", 0.0)),  # not filled in without do_sample
        stops=tuple(options["until"]),
    )
    return "".join(piece for _, piece in completion), truncated, shortened
