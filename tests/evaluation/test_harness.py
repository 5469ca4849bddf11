"""Tasks of lm-evaluation-harness score a model as its own `hf` model scores the exported folder."""

import json
import sys
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest

from mla_lm.commands import export
from mla_lm.errors import UserError
from mla_lm.evaluation.harness import _continued, _plain
from mla_lm.generation import Completion, Sampling
from mla_lm.model import Transformer
from tests.conftest import one_line
from tests.evaluation.conftest import scored
from tests.interop.random_runs import byte_tokenizer, checkpoint_of, model_of, random_config

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own

TASKS: dict[str, dict[str, Any]] = {  # the last two: longer than the context, and to be continued
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "last": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{context}}",
        "doc_to_target": " {{continuation}}",
        "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
    },
    "pairs": {
        "output_type": "multiple_choice",
        "doc_to_text": "",
        "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
        "doc_to_target": 0,
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    "whole": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "until": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{text[:3]}}",
        "generation_kwargs": {"until": ["x"], "max_gen_toks": 5, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}
OF_QUESTIONS = ("choice", "last", "pairs")
WORDS = ("the", "cat", "sat", "on", "a", "mat", "near", "old", "trees", "while", "rain", "fell")


def sentence(seed: int, n: int) -> str:
    return " ".join(WORDS[(seed * 7 + k * (seed % 5 + 1)) % len(WORDS)] for k in range(n))


def item(kind: str, i: int) -> dict[str, Any]:
    of_kind = {
        "choice": {
            "query": sentence(i, 4),
            "choices": [sentence(i + k, 1 + k) for k in range(3)],
            "gold": i % 3,
        },
        "last": {"context": sentence(i, 5), "continuation": sentence(i + 3, 1)},
        "pairs": {"sentence_good": sentence(i, 5), "sentence_bad": sentence(i + 1, 5)},
    }
    return of_kind.get(kind, {"text": sentence(i, 40)})


def write_task(folder: Path, name: str, kind: str, lines: list[dict[str, Any]]) -> None:
    """A task of the harness, in YAML that is JSON, and its file of questions."""
    path = folder / f"own_{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}}}
    task = {"task": name, "test_split": "test", **source, **TASKS[kind]}
    (folder / f"{name}.yaml").write_text(json.dumps(task))


@pytest.fixture(autouse=True)
def _own_tasks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The index of all tasks of the harness takes 7 seconds."""
    manager = lm_eval.tasks.TaskManager
    monkeypatch.setattr(
        "lm_eval.tasks.TaskManager",
        lambda include_path, **_: manager(include_path=include_path, include_defaults=False),
    )


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for kind in TASKS:
        n_items = 24 if kind in OF_QUESTIONS else 3
        write_task(folder, kind, kind, [item(kind, i) for i in range(n_items)])
    return folder


@pytest.fixture(scope="module")
def model() -> Transformer:
    return model_of(random_config(3))


def test_files_are_scored_as_tasks(model: Transformer, tasks: Path) -> None:
    found = scored(model, *OF_QUESTIONS, tasks_include=str(tasks))
    ours = scored(model, *(tasks / f"own_{name}.jsonl" for name in OF_QUESTIONS))
    for name in ("choice/acc", "choice/acc_norm", "choice/acc_stderr", "pairs/acc", "last/acc"):
        assert found[name] == ours[f"own_{name}"]
    n_tokens = sum(len(sentence(i + 3, 1)) + 1 for i in range(24)) / 24
    of_answers = ours["own_last/perplexity"] ** n_tokens  # the harness's is not per token
    assert found["last/perplexity"] == pytest.approx(of_answers, rel=1e-4)


def test_the_exported_folder_gives_the_same(
    model: Transformer, tasks: Path, tmp_path: Path
) -> None:
    path = checkpoint_of(random_config(3), model, tmp_path)
    export.run([f"ckpt={path}", f"out={tmp_path / 'out'}"])

    def theirs(names: list[str], more: str = "") -> dict[str, Any]:
        found = lm_eval.simple_evaluate(
            "hf",
            model_args=f"pretrained={tmp_path / 'out'},dtype=float32,logits_cache=False{more}",
            tasks=names,
            task_manager=lm_eval.tasks.TaskManager(include_path=str(tasks)),
            device="cpu",
            batch_size=4,
            bootstrap_iters=0,
        )
        results: dict[str, Any] = found["results"]
        return results

    wanted = theirs([*OF_QUESTIONS, "until"]) | theirs(["whole"], ",add_bos_token=False")
    ours = scored(model, *TASKS, tasks_include=str(tasks))
    for task in TASKS:
        for name, value in wanted[task].items():
            if isinstance(value, float):
                key = f"{task}/{name.removesuffix(',none')}"
                assert ours[key] == pytest.approx(value, rel=1e-4)


def test_what_is_too_long_is_cut_and_counted_by_task(model: Transformer, tmp_path: Path) -> None:
    """A prompt to continue is cut between characters."""
    texts = {"some": [40, 40, 40, 5], "none": [5]}
    for name, words in texts.items():
        lines = [{"context": sentence(i, n), "continuation": "end"} for i, n in enumerate(words)]
        write_task(tmp_path, name, "last", lines)
    write_task(tmp_path, "until", "until", [{"text": "🙂" * 60}])
    found = scored(model, "some", "none", "until", tasks_include=str(tmp_path))
    counts = {name: found[f"{name}/n_truncated"] for name in ("some", "none", "until")}
    assert counts == {"some": 3, "none": 0, "until": 1}
    assert found["until/exact_match"] == 0.0


@pytest.mark.parametrize(
    ("n_words", "options", "n_new", "truncated", "shortened"),
    [
        (5, {}, 80 - 1 - 25, False, True),  # 256 tokens on a context of 80: the prompt stays whole
        (5, {"max_gen_toks": 5}, 5, False, False),
        (40, {"max_gen_toks": 5}, 5, True, False),  # as in the harness
        (40, {}, 40, True, True),
    ],
)
def test_a_prompt_goes_before_the_length_of_the_answer(
    n_words: int,
    options: dict[str, Any],
    n_new: int,
    truncated: bool,
    shortened: bool,
    model: Transformer,
) -> None:
    tokenizer, prompt = byte_tokenizer(), "word " * n_words
    found = _continued(model, tokenizer, prompt, {"until": ["no such text"], **options})
    prompt = prompt[-(80 - 1 - n_new) :]
    completion = Completion(model, tokenizer, [prompt], max_new_tokens=n_new, sampling=Sampling(0))
    assert found == ("".join(piece for _, piece in completion), truncated, shortened)


def test_errors_and_filters_have_names() -> None:
    names = ["acc,none", "acc_stderr,none", "match,strict", "match_stderr,strict"]
    assert list(map(_plain, names)) == ["acc", "acc_stderr", "match,strict", "match,strict_stderr"]


@pytest.mark.parametrize("names", [["no_such_task"], ["sciq"], ["lambda", "own.jsonl"]])
def test_tasks_that_cannot_be_had_are_one_line(
    names: list[str], model: Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if names == ["sciq"]:
        monkeypatch.undo()  # `_own_tasks_only`
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read long ago
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    Path("own.jsonl").write_text(json.dumps(item("choice", 0)) + "\n")
    assert one_line(lambda: scored(model, *names)).startswith(f"tasks={names[0]}: ")


def test_two_tasks_of_one_name_are_refused(model: Transformer, tasks: Path) -> None:
    with pytest.raises(UserError, match="another task is called own_last"):
        scored(model, tasks / "own_last.jsonl", "own_last")


def test_without_the_harness_one_line_says_how_to_install_it(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(UserError, match=r'pip install "mla_lm\[eval\]"'):
        scored(model, "blimp")
