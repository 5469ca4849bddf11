"""The diffs of "Extend it" and "A corpus" in two pages, applied to copies and put to use."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.data.prepared import open_prepared
from tests.processes import ROOT, environment

STEPS, SPEED = 3, 0.01
SHORT = (
    "model=nano",
    "data/tokenizer=bytes",
    "data.seq_len=32",
    "data.batch_size=4",
    "precision=32-true",
    "trainer.accelerator=cpu",
    f"trainer.max_steps={STEPS}",
    f"trainer.val_every_n_steps={STEPS}",
    f"balance.bias_update_speed={SPEED}",
    "balance.bias_decay_fraction=0.0",
    "callbacks.samples.max_new_tokens=1",
    "run_dir=run",
)
SOURCES = [[f"# Notebook {i}\n", f"x = {i}\n" * 9] for i in range(12)]
PRINTED = "not to be read"
pytestmark = pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="the repository's files are those that git lists"
)


def attention_is_gated(copy: Path) -> None:
    """Its gates are in the checkpoint, the suite's checks pass, and export says why it refuses."""
    state = checkpoint_file.read(last_checkpoint(copy))["state_dict"]
    assert state["model.blocks.0.attention.gate.weight"].any()
    suites = ("tests/model/test_causality.py", "tests/model/test_cache.py")
    words = ("-m", "pytest", "-q", *suites, "tests/test_cost.py", "-k", "gated")
    result = python(copy, *words)
    assert result.returncode == 0, result.stdout
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None
    assert int(passed[1]) >= 20
    refused = python(copy, "-m", "mla_lm", "export", "ckpt=run", "out=exported")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "model.attention.kind=gated" in refused.stderr


def biases_moved_in_proportion(copy: Path) -> None:
    """As the loads of all steps say."""
    stored = checkpoint_file.read(last_checkpoint(copy))
    biases = [t for key, t in stored["state_dict"].items() if key.endswith("correction_bias")]
    (seen,) = (state for name, state in stored["callbacks"].items() if "ExpertLoad" in name)
    assert len(seen["loads"]) == STEPS
    for layer, bias in enumerate(biases):
        loads = [load[layer].float() for load in seen["loads"]]
        expected = sum((SPEED * (1 - load / load.mean()) for load in loads), torch.zeros(()))
        torch.testing.assert_close(bias, expected)
    assert all(bias.any() for bias in biases)


def notebooks_were_read(copy: Path) -> None:
    """Every cell of every notebook, and nothing else."""
    (folder,) = (p.parent for p in (copy / "data/cache").glob("notebook-*/manifest.json"))
    data = open_prepared(folder, verify="full")
    texts: list[list[int]] = []
    for token in [*data.train[:].tolist(), *data.val[:].tolist()]:
        if token == data.tokenizer.end_of_text:
            texts.append([])
        else:
            texts[-1].append(token)
    expected = sorted("\n\n".join(cells) for cells in SOURCES)
    assert sorted(map(data.tokenizer.decode, texts)) == expected


EXAMPLES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "An attention kind": ("model/attention=gated", attention_is_gated),
    "A balancing strategy": ("balance=proportional", biases_moved_in_proportion),
    "A corpus": ("data=notebook", notebooks_were_read),
}


def diff_of(example: str) -> str:
    pages = ("mla_lm/model/README.md", "data/README.md")
    text = "".join((ROOT / page).read_text() for page in pages)
    return re.split(r"```(?:diff\n)?", text.split(f"\n### {example}\n")[1])[1]


def copied(folder: Path, examples: list[str]) -> Path:
    """The files of the repository, with the diffs of the examples."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    alone = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    for example in examples:
        diff = diff_of(example)
        subprocess.run(["git", "apply"], cwd=folder, env=alone, input=diff, text=True, check=True)
    return folder


def python(copy: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=copy,
        env=environment(PYTHONPATH=str(copy)),
        capture_output=True,
        text=True,
    )


def last_checkpoint(copy: Path) -> Path:
    return copy / "run" / "checkpoints" / f"step-{STEPS:06d}.ckpt"


def write_notebooks(folder: Path) -> None:
    folder.mkdir()
    for i, cells in enumerate(SOURCES):
        stored = [{"source": cells[0], "outputs": []}]
        stored.append({"source": cells[1].splitlines(keepends=True), "outputs": [PRINTED]})
        (folder / f"{i}.ipynb").write_text(json.dumps({"cells": stored}))


def check(folder: Path, examples: list[str]) -> None:
    """Three steps with the choices of the examples, and what each says of the run."""
    copy = copied(folder / "copy", examples)
    write_notebooks(copy / "notebooks")
    choices = [EXAMPLES[example][0] for example in examples]
    if "data=notebook" not in choices:
        choices.append("data=text")
    result = python(copy, "train.py", *SHORT, *choices, "data.path=notebooks")
    assert result.returncode == 0, result.stderr
    for example in examples:
        EXAMPLES[example][1](copy)


def test_all_examples_together(tmp_path: Path) -> None:
    check(tmp_path, list(EXAMPLES))


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
def test_each_example_alone(example: str, tmp_path: Path) -> None:
    check(tmp_path, [example])
