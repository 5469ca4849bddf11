"""lm-evaluation-harness scores a model as we do, by our adapter and from the exported folder."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mla_lm.commands import export
from mla_lm.errors import UserError
from mla_lm.evaluation.harness import _plain, run_harness
from mla_lm.evaluation.items import read_items
from mla_lm.evaluation.tasks import evaluate_task
from mla_lm.model import Transformer
from tests.interop.random_runs import byte_tokenizer, checkpoint_of, random_config, trained

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own

HEAD = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
"""
CHOICE = (
    HEAD
    + """
task: {name}
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
)
LAST = (
    HEAD
    + """
task: {name}
output_type: loglikelihood
doc_to_text: "{{{{context}}}}"
doc_to_target: " {{{{continuation}}}}"
metric_list: [{{metric: perplexity}}, {{metric: acc}}]
"""
)
BLIMP = (
    HEAD
    + """
task: {name}
output_type: multiple_choice
doc_to_text: ""
doc_to_choice: "{{{{[sentence_good, sentence_bad]}}}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
)
WHOLE = (
    HEAD
    + """
task: whole
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""
)
UNTIL = (
    HEAD
    + """
task: until
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{text[:3]}}}}"
generation_kwargs: {{until: [x], max_gen_toks: 5, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
)
TASKS = {"choice": CHOICE, "last": LAST, "blimp": BLIMP}
OTHERS = {"whole": WHOLE, "until": UNTIL}  # longer than the context, and to be continued
WORDS = ("the", "cat", "sat", "on", "a", "mat", "near", "old", "trees", "while", "rain", "fell")


def sentence(seed: int, n: int) -> str:
    return " ".join(WORDS[(seed * 7 + k * (seed % 5 + 1)) % len(WORDS)] for k in range(n))


def items(name: str, i: int) -> dict[str, Any]:
    if name == "choice":
        return {
            "query": sentence(i, 4),
            "choices": [sentence(i + k, 1 + k) for k in range(3)],
            "gold": i % 3,
        }
    if name == "last":
        return {"context": sentence(i, 5), "continuation": sentence(i + 3, 1)}
    return {"sentence_good": sentence(i, 5), "sentence_bad": sentence(i + 1, 5), "paradigm": "p"}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    for name, task in TASKS.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(items(name, i)) + "\n" for i in range(24)))
        (folder / f"{name}.yaml").write_text(task.format(path=path, name=name))
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": sentence(i, 40)}) + "\n" for i in range(3)))
    for name, task in OTHERS.items():
        (folder / f"{name}.yaml").write_text(task.format(path=path))
    return folder


@pytest.fixture(scope="module")
def model() -> Transformer:
    return trained(random_config(3))


def test_both_scorers_agree(model: Transformer, bundles: Path) -> None:
    found = run_harness(model, byte_tokenizer(), list(TASKS), include=str(bundles))
    ours = {
        name: evaluate_task(
            model, byte_tokenizer(), read_items(bundles / f"{name}.jsonl"), delimiter=" "
        )
        for name in TASKS
    }
    assert found["choice/acc"] == ours["choice"]["accuracy"]
    assert found["choice/acc_norm"] == ours["choice"]["accuracy_norm"]
    assert found["blimp/acc"] == ours["blimp"]["accuracy"] == ours["blimp"]["accuracy/p"]
    assert found["last/acc"] == ours["last"]["accuracy"]
    assert found["choice/acc_stderr"] == pytest.approx(ours["choice"]["accuracy_stderr"])
    assert found["choice/n_truncated"] == ours["choice"]["n_truncated"] == 0
    assert ours["choice"]["chance"] == pytest.approx(1 / 3)
    n_tokens = sum(len(sentence(i + 3, 1)) + 1 for i in range(24)) / 24
    theirs = math.log(found["last/perplexity"])  # of whole answers
    assert theirs == pytest.approx(n_tokens * math.log(ours["last"]["perplexity"]), abs=1e-4)


def test_the_exported_folder_gives_the_same(
    model: Transformer, bundles: Path, tmp_path: Path
) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    path = checkpoint_of(random_config(3), model, tmp_path)
    export.run([f"ckpt={path}", f"out={tmp_path / 'out'}"])

    def theirs(tasks: list[str], more: str = "") -> dict[str, Any]:
        found = lm_eval.simple_evaluate(
            "hf",
            model_args=f"pretrained={tmp_path / 'out'},dtype=float32{more}",
            tasks=tasks,
            task_manager=TaskManager(include_path=str(bundles)),
            device="cpu",
            batch_size=4,
            bootstrap_iters=0,
        )
        results: dict[str, Any] = found["results"]
        return results

    wanted = theirs([*TASKS, "until"]) | theirs(["whole"], ",add_bos_token=False")
    ours = run_harness(model, byte_tokenizer(), [*TASKS, *OTHERS], include=str(bundles))
    for task in (*TASKS, *OTHERS):
        for name, value in wanted[task].items():
            if isinstance(value, float):
                key = f"{task}/{name.removesuffix(',none')}"
                assert ours[key] == pytest.approx(value, rel=1e-4)


def test_a_prompt_that_is_too_long_is_cut_between_characters(
    model: Transformer, tmp_path: Path
) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"text": "🙂" * 60}) + "\n")
    (tmp_path / "until.yaml").write_text(UNTIL.format(path=path))
    assert run_harness(model, byte_tokenizer(), ["until"], include=str(tmp_path)) == {
        "until/exact_match": 0.0,
        "until/n_truncated": 1,
    }


def test_texts_that_are_too_long_are_counted_by_task(model: Transformer, tmp_path: Path) -> None:
    for name, n_long in (("some", 3), ("none", 0)):
        path = tmp_path / f"{name}.jsonl"
        texts = [sentence(i, 40 if i < n_long else 5) for i in range(5)]
        lines = [{"context": text, "continuation": "end"} for text in texts]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / f"{name}.yaml").write_text(LAST.format(path=path, name=name))
    found = run_harness(model, byte_tokenizer(), ["some", "none"], include=str(tmp_path))
    assert (found["some/n_truncated"], found["none/n_truncated"]) == (3, 0)


def test_errors_and_filters_have_names() -> None:
    names = ["acc,none", "acc_stderr,none", "match,strict", "match_stderr,strict"]
    assert list(map(_plain, names)) == ["acc", "acc_stderr", "match,strict", "match,strict_stderr"]


@pytest.mark.parametrize("task", ["no_such_task", "lambada_openai"])
def test_a_task_that_cannot_be_had_is_one_line(
    task: str, model: Transformer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read long ago
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        run_harness(model, byte_tokenizer(), [task])
    assert str(caught.value).startswith(f"harness={task}: ")
    assert len(str(caught.value).splitlines()) == 1
