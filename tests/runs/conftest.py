"""One short run trained through the real process, and the means to start others like it."""

import csv
import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mla_lm import load_config
from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.checkpoint.resume import resolve_origin
from tests.processes import run

STEPS = 12
SAVE_EVERY = 5
EPOCH = 10  # steps the corpus lasts for


class Run(NamedTuple):
    """`overrides` made it, `run_dir` apart."""

    folder: Path
    overrides: tuple[str, ...]
    stdout: str


def write_corpus(folder: Path, *, n_documents: int = 13) -> Path:
    folder.mkdir(parents=True)
    rng = random.Random(0)
    for index in range(n_documents):
        lines = (f"def f{rng.randrange(40)}(x):\n    return x + {i}\n" for i in range(9))
        (folder / f"{index:02}.py").write_text("\n".join(lines))
    return folder


def short_run(place: Path) -> tuple[str, ...]:
    """Overrides of a run of `STEPS` steps over the corpus below `place`."""
    return (
        "model=nano",
        "data=text",
        f"data.path={place / 'text'}",
        f"data.cache_dir={place / 'cache'}",
        "data.tokenizer.vocab_size=300",
        "data.seq_len=32",
        "data.batch_size=4",
        "precision=32-true",
        "trainer.accelerator=cpu",
        f"trainer.max_steps={STEPS}",
        "trainer.val_every_n_steps=4",
        "trainer.limit_val_batches=null",
        "trainer.log_every_n_steps=1",
        f"checkpoint.every_n_steps={SAVE_EVERY}",
        "callbacks.samples.max_new_tokens=16",
    )


def train_here(*overrides: str) -> None:
    """`python train.py OVERRIDES` without the process."""
    import train

    train.train(load_config(overrides), list(overrides))


def checkpoint(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:06d}.ckpt"


def content(path: Path) -> dict[str, Any]:
    return checkpoint_file.read(path)


def logged(folder: Path, *, version: int = 0) -> list[dict[str, str]]:
    """The rows of a run's metrics file, empty cells left out."""
    path = folder / "metrics" / f"version_{version}" / "metrics.csv"
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def resolve(trained: Run, *overrides: str) -> Any:
    words = [*trained.overrides, *overrides]
    return resolve_origin(load_config(words), words).cfg


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("trained")
    write_corpus(place / "text")
    overrides = short_run(place)
    result = run("train.py", *overrides, f"run_dir={place / 'run'}", cwd=place)
    assert result.returncode == 0, result.stderr
    return Run(place / "run", overrides, result.stdout)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Corpora whose folder nobody names are prepared below the working folder."""
    monkeypatch.chdir(tmp_path_factory.getbasetemp())
