"""What ends a run of several processes is one line, whether one of them fails or all do."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.distributed import HashStore

from mla_lm.errors import INTERRUPTED, UserError
from mla_lm.files import claimed
from mla_lm.training.processes import _one_speaker
from tests.scale.runs import DDP, ended, start, write_text


@pytest.fixture(autouse=True)
def _text(tmp_path: Path) -> None:
    write_text(tmp_path / "text.txt")


def line(place: Path, *words: str) -> str:
    done = ended(start(place, *DDP, *words))
    assert done.status == 2, done.err
    return done.line


def test_a_text_that_is_too_short_for_all(tmp_path: Path) -> None:
    said = line(tmp_path / "run", "data.batch_size=100000")
    assert said.startswith("error: data.seq_len=32: 200000 sequences of it need 6400001 tokens")


@pytest.mark.slow
@pytest.mark.parametrize("n_ranks", [1, 2])
def test_memory_that_is_out(tmp_path: Path, n_ranks: int) -> None:
    said = line(tmp_path / "run", f"+callbacks.watch.greedy={n_ranks}")
    assert said.startswith("error: out of memory in a step of 4 rows of 32 tokens; what helps: ")


def test_a_folder_that_is_taken(tmp_path: Path) -> None:
    run_dir = tmp_path / "run" / "run"
    with claimed(run_dir, key="run_dir"):
        said = line(tmp_path / "run")
    assert said == f"error: run_dir={run_dir}: another process works there"


@pytest.mark.slow
def test_no_space_for_the_checkpoints(tmp_path: Path) -> None:
    said = line(tmp_path / "run", "checkpoint.keep=1000000000")
    assert "1000000002 checkpoints need" in said


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "run/run/checkpoints/step-000010.ckpt"
    said = line(tmp_path / "run", f"+callbacks.watch.block={path}")
    assert said.startswith(f"error: {path}: cannot be written (")


@pytest.fixture
def _sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


FAILED, LOST = UserError("the text is too short"), RuntimeError("Connection closed by peer")


@pytest.mark.usefixtures("_sigterm")
@pytest.mark.parametrize(
    ("errors", "ends"),
    [
        ((FAILED, FAILED), (FAILED, 2)),
        ((FAILED, LOST, FAILED), (FAILED, 2, 2)),
        ((LOST, LOST), (1, 1)),
        ((KeyboardInterrupt(),), (INTERRUPTED,)),
    ],
)
def test_one_rank_speaks(
    errors: tuple[BaseException, ...],
    ends: tuple[BaseException | int, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ranks 1, 2, ... end one after the other."""
    store = HashStore()
    for rank, (error, end) in enumerate(zip(errors, ends, strict=True), 1):
        monkeypatch.setenv("RANK", str(rank))
        with pytest.raises((UserError, SystemExit)) as caught, _one_speaker(store):
            raise error
        assert getattr(caught.value, "code", caught.value) == end
    line = "error: rank 1 lost another (Connection closed by peer)\n"
    assert capsys.readouterr().err == (line if errors[0] is LOST else "")
