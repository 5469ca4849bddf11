"""The pages: links resolve, commands compose, and commands and Python snippets run.

Commands run as written but shortened by overrides, on tiny inputs that are made when a command
names them: a run that a page takes for granted is a copy of `runs/first`. What a test cannot run
is listed in `NOT_RUN` with the reason.
"""

import gzip
import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from mla_lm.config import EvalConfig
from mla_lm.config.cli import parse_options
from mla_lm.config.compose import compose, load_config, validate
from tests.processes import ROOT, environment
from tests.reliability.record import table

PLACES = ("README.md", "data/README.md", "configs/*/README.md", "mla_lm/*/README.md")
PAGES = sorted(page for place in PLACES for page in ROOT.glob(place))
NOT_RUN = {  # how a command begins: why no test runs it
    "make ": "installs packages",
    "pip ": "installs packages",
    ".venv/bin/": "installs packages",
    "python -m venv": "installs packages",
    ".vllm/bin/": "vLLM has an environment of its own; tests/interop/test_vllm.py",
    "vllm ": "vLLM has an environment of its own; tests/interop/test_vllm.py",
    "curl ": "asks a vLLM server",
    "sbatch ": "needs a cluster; tests/scale runs the script",
    "torchrun ": "needs eight GPUs; tests/scale runs torchrun with two processes",
    "python -m pytest": "is a test itself",
    "pytest ": "is a test itself",
    "python -m mla_lm bench": "measures for minutes; tests/bench runs it shortened",
}
NEEDS = {  # an override: what it needs that a test does not have
    "experiment=tinystories": "the Hugging Face hub and a GPU",
    "experiment=fineweb_edu": "the Hugging Face hub and eight GPUs",
    "data=tinystories": "the Hugging Face hub",
    "data=fineweb_edu": "the Hugging Face hub",
    "data=wikitext": "the Hugging Face hub",
    "data=hub": "the Hugging Face hub",
}
FIRST = (  # the commands of `make train`
    "python train.py run_dir=runs/first resume=auto",
    "python eval.py ckpt=runs/first",
    'python -m mla_lm generate ckpt=runs/first prompt="def "',
)
SHORT = {
    "model": "nano",
    "trainer.max_steps": "3",
    "trainer.val_every_n_steps": "3",
    "data.seq_len": "32",
    "data.tokenizer.vocab_size": "300",
}
FUNCTIONS = [f"def function_{i}(x):\n    return x + {i}\n\n" for i in range(2000)]
BOOKS = "".join(json.dumps({"text": text * 9}) + "\n" for text in FUNCTIONS[:500])
QUESTION = '{"context": "def function_1(x):", "continuation": "return"}\n'


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.join(words) for line in lines if (words := shlex.split(line, comments=True))]


def is_run(command: str) -> bool:
    return not command.startswith(tuple(NOT_RUN)) and not NEEDS.keys() & {*shlex.split(command)}


def shortened(command: str) -> list[str]:
    """The words behind `python`, with overrides that make it a matter of seconds."""
    program, *words = shlex.split(command)[1:]
    given = {word.partition("=")[0] for word in words}
    if program == "train.py":
        short = dict(SHORT)
        if "init_from" in given:
            del short["model"], short["data.tokenizer.vocab_size"]
        elif {"data=synthetic", "data/tokenizer=bytes"} & {*words}:
            del short["data.tokenizer.vocab_size"]
        words = [word for word in words if word.partition("=")[0] not in SHORT]
        words += [f"{key}={value}" for key, value in short.items()]
        words += ["data.n_documents=300"] if "data=synthetic" in words else []
    if program in ("train.py", "data/prepare.py") and not given & {"data", "data.path"}:
        words += ["data=text", "data.path=my.txt"]
    if program == "eval.py":
        words = ["stride=16" if word.startswith("stride=") else word for word in words]
        words += [] if "limit" in given else ["limit=2"]
    if "generate" in words:
        words += [] if "max_new_tokens" in given else ["max_new_tokens=8"]
    if "ablate" in words and "report" not in given:
        words.append("plan=true")
    return [program, *words]


def supply(place: Path, words: list[str]) -> None:
    """Make the inputs that a command names and no command before it has made."""
    for key, _, value in (word.partition("=") for word in words):
        path = place / value
        if key in ("ckpt", "init_from", "resume") and value != "auto" and not path.exists():
            shutil.copytree(place / "runs/first", path)
        elif key == "src" and not path.exists():
            python(place, ["-m", "mla_lm", "export", "ckpt=runs/first", f"out={value}"])
        elif key in ("data.path", "data.val_path") and not path.exists():
            text = BOOKS if ".jsonl" in path.name else "".join(FUNCTIONS)
            content = text.encode()
            path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def python(place: Path, words: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, *words],
        cwd=place,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, f"{words}\n{result.stdout}\n{result.stderr}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the applications and what the first command of `make train` leaves."""
    place = tmp_path_factory.mktemp("pages")
    for name in ("train.py", "eval.py", "data/prepare.py"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).symlink_to(ROOT / name)
    (place / "my.jsonl").write_text(QUESTION)
    (place / "data/eval").mkdir()
    for name in re.findall(r"path: (\S+\.jsonl\.gz)", (ROOT / "configs/eval.yaml").read_text()):
        (place / "data/eval" / name).write_bytes(gzip.compress(QUESTION.encode()))
    words = shortened(FIRST[0])
    supply(place, words)
    python(place, words)
    return place


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in link]
    paths = [(page.parent / link.partition("#")[0], link) for link in links if link[0] != "#"]
    assert [link for path, link in paths if not path.exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_compose(page: Path) -> None:
    """Every key and choice exists, also of commands that no test runs; others are listed."""
    for command in commands(page):
        program, *words = shlex.split(command)[1:] or [""]
        if not command.startswith("python "):
            assert not is_run(command), f"{command}: run it, or say in NOT_RUN why not"
        elif program in ("train.py", "data/prepare.py"):
            load_config([re.sub(r"=([^,\[]+),.*", r"=\1", word) for word in words if word != "-m"])
        elif program == "eval.py":
            own = [word for word in words if not word.startswith(("data", "logger"))]
            validate(EvalConfig, compose("eval", own))
        elif words[1] in ("bench", "export", "generate"):
            parse_options(import_module(f"mla_lm.commands.{words[1]}").Options, words[2:])


def test_the_first_commands_run(trained: Path) -> None:
    """What `make train` runs, and the Python snippet of the README."""
    makefile, readme = (ROOT / "Makefile").read_text(), ROOT / "README.md"
    for command in FIRST:
        assert command.replace("runs/first", "$(RUN)") in makefile
        assert shlex.join(shlex.split(command)) in commands(readme)
    for command in FIRST[1:]:
        python(trained, shortened(command))
    (snippet,) = blocks(readme, "python")
    python(trained, ["-c", snippet])


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_run(page: Path, trained: Path, tmp_path: Path) -> None:
    """Those of a page in their order, in a folder of their own; YAML files it shows are there."""
    place = shutil.copytree(trained, tmp_path / "place", symlinks=True)
    for block in blocks(page, "yaml"):
        if named := re.match(r"# (\S+\.yaml)\n", block):
            (place / named[1]).write_text(block)
    for command in filter(is_run, commands(page)):
        words = shortened(command)
        supply(place, words)
        python(place, words)
    for snippet in blocks(page, "python"):
        python(place, ["-c", snippet])


def test_a_page_shows_what_the_tests_have_counted() -> None:
    assert table() in (ROOT / "mla_lm/training/README.md").read_text()
