"""Folders and files of others forged at random: each ends well, or in one line with status 2.

Imported models, folders of studies and question files; limits as in `test_mutated.py`. A
dozen by default, all 1,500 with `RECORD=1 make test-all`.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save

from mla_lm.ablation.runner import STUDY
from mla_lm.ablation.study import Study
from mla_lm.errors import CONTROLS
from tests.ablation.folders import GQA, usual, write_run
from tests.forgeries import mutations
from tests.interop.foreign_models import YARN, foreign_folder
from tests.interop.random_runs import checkpoint_of, model_of, random_config
from tests.reliability.record import record
from tests.reliability.runs import CONTEXT
from tests.reliability.test_mutated import how_it_ended, of_tensors

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
QUESTIONS: tuple[list[dict[str, Any]], ...] = (
    [
        {"query": "Q", "choices": ["aa", "b", "c"], "gold": 2},
        {"query": "", "choices": ["a", "b"], "gold": 0},
    ],
    [{"context_options": ["one", "two"], "continuation": "end", "gold": 0}],
    [{"context": "It was", "continuation": "late"}, {"context": "", "continuation": "x"}],
    [{"sentence_good": "good", "sentence_bad": "bad", "paradigm": "x"}],
)
Forgeries = Iterator[tuple[str, Callable[[Path], object]]]
Mutations = Iterator[tuple[str, Any]]


@pytest.fixture(scope="session", autouse=True)
def _imported_once() -> None:
    """Where the server that forks has not begun yet."""
    modules = ["tests.reliability.child", "mla_lm.ablation.runner", "lm_eval.api.task", "datasets"]
    CONTEXT.set_forkserver_preload(modules)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is forged: `src`, `study`, and a checkpoint that answers questions."""
    place = tmp_path_factory.mktemp("good")
    foreign_folder(place / "src", rope_parameters={**YARN, "mscale": 1.0, "mscale_all_dim": 1.0})
    cfg = random_config(3)
    checkpoint_of(cfg, model_of(cfg), place)
    for arm, overrides in (("mla", ()), ("gqa", (GQA,))):
        for seed in (1, 2):
            rows = usual(1 + 0.01 * seed)
            costs = {"peak_memory": 7.5e6, "decode/32/1": 90.0, "decode/32/8": 300.0}
            cell = place / "study" / "cells" / f"{arm}-s{seed}"
            write_run(cell, rows, overrides=overrides, seed=seed, costs=costs)
            ran = {"command": "python train.py", "environment": {"python": "3.11", "threads": 2}}
            (cell / "run.json").write_text(json.dumps(ran))
            (cell / "metrics.json").write_text(json.dumps({"prefill/32/1": 4e3, "ckpt": "x"}))
    study = Study(question="q?", arms={"mla": [], "gqa": [GQA]}, reference="mla", seeds=(1, 2))
    kept = {"command": "x", "study": study.model_dump(mode="json"), "configurations": {}}
    (place / "study" / STUDY).write_text(json.dumps(kept))
    return place


def imported(good: Path, rng: Random) -> Forgeries:
    """Of each file of a model's folder in turn."""
    names = ("config.json", "tokenizer_config.json", "tokenizer.json")
    trees = {name: json.loads((good / "src" / name).read_text()) for name in names}
    with safe_open(good / "src" / SINGLE, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    trees[INDEX] = {"weight_map": dict.fromkeys(tensors, SINGLE)}
    changes: dict[str, Mutations] = {name: mutations(tree, rng) for name, tree in trees.items()}
    changes["config.json again"] = mutations(trees["config.json"], rng)
    changes[SINGLE] = mutations(tensors, rng, leaf=of_tensors)
    raw = (good / "src" / SINGLE).read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    changes["header"] = mutations(json.loads(raw[8:end]), rng)

    def content(name: str, changed: Any) -> tuple[str, bytes]:
        if name == SINGLE:
            return SINGLE, save(changed)
        text = json.dumps(changed).encode()
        if name == "header":
            return SINGLE, len(text).to_bytes(8, "little") + text + raw[end:]
        return name.removesuffix(" again"), text

    def write(place: Path, name: str, changed: Any) -> None:
        file, forged = content(name, changed)
        shutil.copytree(good / "src", place / "src")
        (place / "src" / file).write_bytes(forged)

    yield from _in_turn(changes, write)


def study(good: Path, rng: Random) -> Forgeries:
    """Of each file of a study; of every second only its runs."""
    cell = Path("cells", "gqa-s2")
    csv = cell / "metrics" / "version_0" / "metrics.csv"
    names = ("config.json", "run.json", "cost.json", "metrics.json")
    files = {str(cell / name) for name in names} | {STUDY}
    trees = {name: json.loads((good / "study" / name).read_text()) for name in sorted(files)}
    rows = [line.split(",") for line in (good / "study" / csv).read_text().splitlines()]
    changes = {name: mutations(tree, rng) for name, tree in trees.items()}
    changes[str(csv)] = mutations(rows, rng)

    def write(place: Path, name: str, changed: Any) -> None:
        text = _table(changed) if name == str(csv) else json.dumps(changed)
        shutil.copytree(good / "study", place / "study")
        if name != STUDY and rng.random() < 0.5:
            (place / "study" / STUDY).unlink()
        (place / "study" / name).write_text(text, encoding="utf-8")

    yield from _in_turn(changes, write)


def _table(rows: Any) -> str:
    lines = rows if isinstance(rows, list) else [rows]
    return "".join(f"{','.join(map(str, x)) if isinstance(x, list) else x}\n" for x in lines)


def questions(good: Path, rng: Random) -> Forgeries:
    """Of files of each shape."""
    changes = {str(n): mutations(lines * 2, rng) for n, lines in enumerate(QUESTIONS)}

    def write(place: Path, _: str, changed: Any) -> None:
        lines = changed if isinstance(changed, list) else [changed]
        (place / "x.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        shutil.copy(good / "step-000003.ckpt", place)

    yield from _in_turn(changes, write)


def _in_turn(changes: dict[str, Mutations], write: Callable[[Path, str, Any], object]) -> Forgeries:
    while True:
        for name, forged in changes.items():
            what, changed = next(forged)
            yield (
                f"{name}: {what}",
                lambda place, name=name, changed=changed: write(place, name, changed),
            )


KINDS: dict[str, tuple[Callable[[Path, Random], Forgeries], tuple[str, ...], str]] = {
    "imported folders": (imported, ("import", "src=src", "out=out"), "out/config.json"),
    "study folders": (study, ("ablate", "report=study"), "study/report.md"),
    "question files": (
        questions,
        ("eval.py", "ckpt=step-000003.ckpt", "parts=[]", "tasks=[x.jsonl]", "accelerator=cpu"),
        "metrics.json",
    ),
}
ALL = [
    *(("imported folders", n, 50) for n in range(20)),
    *(("study folders", n, 20) for n in range(15)),
    *(("question files", n, 20) for n in range(10)),
]
FEW = {"imported folders": 6, "study folders": 3, "question files": 3}


def ends(kind: str, good: Path, place: Path, rng: Random) -> Iterator[str]:
    """How each forgery ended: answered, refused, or what is wrong."""
    forge, words, result = KINDS[kind]
    for number, (what, write) in enumerate(forge(good, rng)):
        folder = place / str(number)
        folder.mkdir()
        try:
            write(folder)
        except Exception:  # nothing that can be written
            continue
        status, said = how_it_ended(words, folder, folder)
        path = folder / result
        shown = path.read_text() if path.exists() else ""
        if status == (0 if shown else 2) and not CONTROLS.search(said + shown):
            yield "answered" if shown else "refused"
        else:
            yield f"{what}: {status} {said[-2000:]}"
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("kind", "piece", "n"),
    [
        *((kind, 0, n) for kind, n in FEW.items()),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ALL),
    ],
)
def test_a_forged_folder_ends_well_or_in_one_line(
    good: Path, tmp_path: Path, kind: str, piece: int, n: int
) -> None:
    counted = Counter(islice(ends(kind, good, tmp_path, Random(piece)), n))
    known = ("refused", "answered")
    wrong = [end for end in counted if end not in known]
    print(json.dumps({name: counted[name] for name in known}))
    record(f"forged {kind}, piece {piece}", n - len(wrong), n)
    assert wrong == []
