"""What keeps several processes from a run: one line that names it, and all of them end."""

import socket
from pathlib import Path

import pytest

from mla_lm import load_config
from mla_lm.training.run import told
from tests.scale.runs import DDP, Ended, by_hand, ended, free_port, start, write_text


@pytest.fixture(autouse=True)
def _text(tmp_path: Path) -> None:
    write_text(tmp_path / "text.txt")


def two(place: Path, first: tuple[str, ...], second: tuple[str, ...], **of_second: str) -> str:
    """The only line of two ranks that are refused, which the first one says."""
    port = free_port()
    processes = [
        start(place, *first, **by_hand(0, port)),
        start(place, *second, **by_hand(1, port), **of_second),
    ]
    said = [ended(process) for process in processes]
    assert [done.status for done in said] == [2, 2]
    assert said[1].err == ""
    return said[0].line


def refused(place: Path, *words: str, **extra: str) -> str:
    done: Ended = ended(start(place, *words, **extra))
    assert done.status == 2
    return done.line


def test_a_batch_that_does_not_divide(tmp_path: Path) -> None:
    line = refused(tmp_path / "run", *DDP, "data.batch_size=5")
    assert line == "error: data.batch_size=5: must be a multiple of the 2 processes"
    assert not (tmp_path / "run" / "run").exists()


def test_folder_and_id_may_be_drawn_by_each() -> None:
    words = ("model=nano", "logger=wandb")
    one, other, changed = (
        told(load_config([*words, f"run_dir=runs/{name}", *more]))
        for name, more in (("a", ()), ("b", ()), ("c", ("seed=2",)))
    )
    assert one == other
    assert {key for key in one if one[key] != changed[key]} == {"seed"}


def test_different_configurations(tmp_path: Path) -> None:
    line = two(tmp_path / "run", (), ("optim.lr=0.5",))
    assert line == "error: optim.lr: 0.5 on rank 1, 0.002 on rank 0"


def test_different_texts(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    other = write_text(tmp_path / "elsewhere" / "text.txt")
    other.write_text(other.read_text() + " jab")
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, text in zip(folders, (tmp_path / "text.txt", other), strict=True):
        folder.mkdir()
        (folder / "here.txt").symlink_to(text)
    port = free_port()
    words = ("data.path=here.txt", "data.cache_dir=cache", f"run_dir={tmp_path / 'run'}")
    watch = f"callbacks.watch.folder={tmp_path / 'watch'}"
    processes = [
        start(folder, *words, watch, **by_hand(rank, port)) for rank, folder in enumerate(folders)
    ]
    said = [ended(process) for process in processes]
    assert [done.status for done in said] == [2, 2]
    assert said[0].line.startswith("error: data corpus: ")
    assert said[1].err == ""


def test_different_versions(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text(
        "import platform\nplatform.python_version = lambda: '3.99.0'\n"
    )
    root = Path(__file__).resolve().parents[2]
    line = two(tmp_path / "run", (), (), PYTHONPATH=f"{other}:{root}")
    assert line.startswith("error: python: 3.99.0 on rank 1")


def test_nobody_to_join(tmp_path: Path) -> None:
    port = free_port()
    line = refused(tmp_path / "run", "trainer.timeout_minutes=0.05", **by_hand(1, port))
    assert line.startswith(f"error: MASTER_ADDR=127.0.0.1 MASTER_PORT={port}: rank 1 cannot join")


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused(tmp_path / "run", **by_hand(0, port))
    assert line.startswith(f"error: MASTER_ADDR=127.0.0.1 MASTER_PORT={port}: rank 0 cannot join")
    assert "in use" in line


def test_half_an_environment(tmp_path: Path) -> None:
    line = refused(tmp_path / "run", WORLD_SIZE="2")
    assert line.startswith("error: RANK: not set")


def test_another_number_than_was_started(tmp_path: Path) -> None:
    line = refused(tmp_path / "run", "trainer.devices=3", **by_hand(0, 1))
    assert line == "error: trainer.devices=3: 2 processes were started here"


def test_compiled_shards(tmp_path: Path) -> None:
    line = refused(tmp_path / "run", "trainer=fsdp", "trainer.compile=true")
    assert line == "error: trainer.compile=True: goes with trainer.strategy=ddp only"
