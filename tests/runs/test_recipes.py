"""Every experiment of configs/experiment trains two steps, made small, on text of this machine."""

import json
from pathlib import Path

import pytest

from mla_lm import load_config
from tests.conftest import TINY, one_line
from tests.processes import ROOT, run
from tests.runs.conftest import Run

RECIPES = ROOT / "configs" / "experiment"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
OF_HUB = {"tinystories", "fineweb_edu"}
CONTINUED = {"long_context", "continue_imported"}
SHORT = (
    "precision=32-true",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.max_steps=2",
    "trainer.accumulate_grad_batches=1",
    "trainer.limit_val_batches=1",
    "trainer.val_every_n_steps=2",
    "data.batch_size=2",
    "callbacks.samples.max_new_tokens=4",
    "run_dir=run",
)
SMALL = (*(word for word in TINY if "vocab_size" not in word), "model.vocab_size=300")


def write_texts(folder: Path) -> None:
    """A folder in the hub's layout; the same stories as JSON lines and as one text."""
    stories = [f"Once there was a cat with {i} hats. It liked hat {i % 7}.\n\n" for i in range(300)]
    (folder / "hub").mkdir()
    for split, texts in (("train", stories[:250]), ("validation", stories[250:])):
        rows = [json.dumps({"text": text}) + "\n" for text in texts]
        (folder / "hub" / f"{split}.jsonl").write_text("".join(rows))
    (folder / "my.jsonl").write_text((folder / "hub" / "train.jsonl").read_text())
    (folder / "my.txt").write_text("".join(stories))


def of(name: str, trained: Run) -> list[str]:
    """The words that make it small and give it text."""
    if name in CONTINUED:
        longer = ["data.seq_len=64"] if name == "long_context" else ["data.seq_len=32"]
        return ["data=text", "data.path=my.txt", f"init_from={trained.folder}", *longer]
    if name in OF_HUB:
        return [*SMALL, "data.name=hub", *(["data.subset=null"] if "edu" in name else [])]
    path = "data.path=my.jsonl" if name == "stories" else "data.path=my.txt"
    return [*SMALL, path, *(["data=text"] if name == "five_minutes" else [])]


@pytest.mark.parametrize("name", NAMES)
def test_its_header_says_command_result_and_cost(name: str) -> None:
    lines = (RECIPES / f"{name}.yaml").read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    said = [f"\n# python train.py experiment={name}", "\n# Result: ", "\n# Cost: "]
    assert [words for words in said if words not in header] == []
    assert all(len(line) <= 100 for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_trains(name: str, trained: Run, tmp_path: Path) -> None:
    write_texts(tmp_path)
    result = run("train.py", f"experiment={name}", *SHORT, *of(name, trained), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "checkpoints" / "step-000002.ckpt").exists()
    if name in CONTINUED:
        assert "starts with the weights of" in result.stdout
        more = ["trainer.max_steps=3", "run_dir=run", "resume=auto"]
        result = run("train.py", *more, cwd=tmp_path)
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", sorted(CONTINUED))
def test_weights_to_begin_with_must_be_named(name: str) -> None:
    said = one_line(lambda: load_config([f"experiment={name}"]))
    assert said.startswith("init_from=: must have at least 1 character")
