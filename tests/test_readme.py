"""The pages: links resolve, commands compose, and commands and Python snippets run.

Commands run as written but shortened by overrides, on tiny inputs that are made when a command
names them: a run that a page takes for granted is a copy of `runs/first`.
"""

import gzip
import json
import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path

import pytest

from mla_lm.config import EvalConfig
from mla_lm.config.cli import parse_options
from mla_lm.config.compose import compose, load_config, validate
from tests.processes import ROOT, run
from tests.reliability.record import table

PLACES = ("README.md", "data/README.md", "configs/*/README.md", "mla_lm/*/README.md")
PAGES = sorted(page for place in PLACES for page in ROOT.glob(place))
NOT_RUN = (  # how a command begins that no test runs
    "pip ",  # installs packages
    "torchrun ",  # needs eight GPUs; tests/scale runs torchrun with two processes
    "python -m mla_lm bench",  # measures for minutes; tests/bench runs it shortened
)
FIRST = (  # the commands of `make train`
    "python train.py experiment=five_minutes run_dir=runs/first resume=auto",
    "python eval.py ckpt=runs/first",
    'python -m mla_lm generate ckpt=runs/first prompt="def "',
)
SHORT = {  # what makes a command a matter of seconds
    "train.py": {
        "model": "nano",
        "trainer.max_steps": "3",
        "trainer.val_every_n_steps": "3",
        "data.seq_len": "32",
        "data.tokenizer.vocab_size": "300",
    },
    "eval.py": {"limit": "2"},
    "generate": {"max_new_tokens": "8"},
    "ablate": {"plan": "true"},
}
FUNCTIONS = [f"def function_{i}(x):\n    return x + {i}\n\n" for i in range(2000)]
BOOKS = "".join(json.dumps({"text": text * 9}) + "\n" for text in FUNCTIONS[:500])
QUESTION = '{"context": "def function_1(x):", "continuation": "return"}\n'


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.join(words) for line in lines if (words := shlex.split(line, comments=True))]


def shortened(command: str) -> list[str]:
    """The words behind `python`, with those of SHORT."""
    program, *words = shlex.split(command)[1:]
    verb = words[1] if program == "-m" else program
    given = {word.partition("=")[0] for word in words}
    short = dict(SHORT.get(verb, {})) if "report" not in given else {}
    if "init_from" in given:
        del short["model"]
    if "data=synthetic" in words:
        short["data.n_documents"] = "300"
    if given & {"init_from", "data/tokenizer"} or "data=synthetic" in words:
        del short["data.tokenizer.vocab_size"]
    if "stride" in given:
        short["stride"] = "16"
    words = [word for word in words if word.partition("=")[0] not in short]
    if verb in ("train.py", "data/prepare.py") and not given & {"data", "data.path"}:
        words += ["data=text", "data.path=my.txt"]
    return [program, *words, *(f"{key}={value}" for key, value in short.items())]


def python(place: Path, words: list[str]) -> None:
    result = run(*words, cwd=place)
    assert result.returncode == 0, f"{words}\n{result.stdout}\n{result.stderr}"


def execute(place: Path, command: str) -> None:
    """Shortened, with the inputs that it names and no command before it has made."""
    words = shortened(command)
    for key, _, value in (word.partition("=") for word in words):
        path = place / value
        if key in ("ckpt", "init_from") and not path.exists():
            shutil.copytree(place / "runs/first", path)
        elif key == "data.path" and not path.exists():
            content = (BOOKS if ".jsonl" in path.name else "".join(FUNCTIONS)).encode()
            path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    python(place, words)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the applications and what the first command of `make train` leaves."""
    place = tmp_path_factory.mktemp("pages")
    (place / "my.jsonl").write_text(QUESTION)
    (place / "data/eval").mkdir(parents=True)
    (place / "data/prepare.py").symlink_to(ROOT / "data/prepare.py")
    for name in re.findall(r"path: (\S+\.jsonl\.gz)", (ROOT / "configs/eval.yaml").read_text()):
        (place / "data/eval" / name).write_bytes(gzip.compress(QUESTION.encode()))
    execute(place, FIRST[0])
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
            assert command.startswith(NOT_RUN), f"{command}: run it, or say in NOT_RUN why not"
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
        if command != FIRST[0]:
            execute(trained, command)
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
    for command in commands(page):
        if not command.startswith(NOT_RUN):
            execute(place, command)
    for snippet in blocks(page, "python"):
        python(place, ["-c", snippet])


def test_a_page_shows_what_the_tests_have_counted() -> None:
    assert table() in (ROOT / "mla_lm/training/README.md").read_text()
