"""The commands of the README, in its order, shortened by overrides, in a folder of their own."""

import gzip
import json
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mla_lm.config import EvalConfig
from mla_lm.config.compose import compose, validate
from tests.processes import environment
from tests.reliability.record import table

ROOT = Path(__file__).resolve().parent.parent
FUNCTIONS = [f"def function_{i}(x):\n    return x + {i}\n\n" for i in range(2000)]
TEXT = "".join(FUNCTIONS)
QUESTION = '{"context": "def function_1(x):", "continuation": "return"}\n'
BOOKS = "".join(json.dumps({"text": text * 9}) + "\n" for text in FUNCTIONS[:500])
LEFT = ("runs/first", "runs/stories", "exported", "runs/back")  # by commands, for others
SHORT = [
    "model=nano",
    "trainer.max_steps=3",
    "trainer.val_every_n_steps=3",
    "data.seq_len=32",
    "data.tokenizer.vocab_size=300",
]


def commands() -> list[str]:
    """Every `python ...` line of the bash blocks, comments cut off."""
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("python ")]


def shortened(command: str) -> list[str]:
    words = shlex.split(command)[1:]
    if words[0] == "train.py":
        given = {word.split("=")[0] for word in words}
        if {"data=synthetic", "data/tokenizer=bytes"} & set(words) or "init_from" in given:
            given.add("data.tokenizer.vocab_size")
        words += [o for o in SHORT if o.split("=")[0] not in given | {"model"}]
        words = ["model=nano" if word.startswith("model=") else word for word in words]
        if not any(word.startswith(("resume=", "model=", "init_from=")) for word in words):
            words.append("model=nano")
        if not any(word.startswith(("resume=", "data=", "data.path=")) for word in words):
            words += ["data=text", "data.path=my.txt"]
        if "data=synthetic" in words:
            words.append("data.n_documents=300")
    elif words[0] == "eval.py":
        words = ["stride=16" if word.startswith("stride=") else word for word in words]
    elif "ablate" in words:
        words.append("plan=true")
    elif words[0] == "data/prepare.py":
        words += [] if "data=text" in words else ["data=text", "data.path=my.txt"]
    return words


def run_in_turn(place: Path, commands: list[list[str]]) -> None:
    for words in commands:
        result = subprocess.run(
            [sys.executable, *words],
            cwd=place,
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, f"{words}\n{result.stdout}\n{result.stderr}"


@pytest.mark.slow
def test_readme_commands_run(tmp_path: Path) -> None:
    """In two rows at a time: those that build on what others leave, and those that do not."""
    (tmp_path / "my.txt").write_text(TEXT)
    (tmp_path / "my.jsonl").write_text(QUESTION)
    for name in ("books", "stories"):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(BOOKS.encode()))
    for name in ("train.py", "eval.py", "data/prepare.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / name)
    for task in validate(EvalConfig, compose("eval", ["ckpt=runs/first"])).bundles.values():
        (tmp_path / "data/eval").mkdir(exist_ok=True)
        (tmp_path / "data/eval" / task.path).write_bytes(gzip.compress(QUESTION.encode()))
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    words = [*map(shortened, commands()), ["-c", snippet]]
    assert len(words) >= 28
    building = [w for w in words if any(name in " ".join(w) for name in LEFT)]
    alone = [w for w in words if w not in building]
    assert min(len(building), len(alone)) >= 5
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(run_in_turn, tmp_path, row) for row in (building, alone)]:
            done.result()


def test_readme_shows_what_the_tests_have_counted() -> None:
    assert table() in (ROOT / "README.md").read_text()
