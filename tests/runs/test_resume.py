"""A run that was killed continues as if nothing had happened, or is refused for a reason."""

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from mla_lm.checkpoint.record import newest
from mla_lm.files import claimed
from tests.processes import command, environment, run
from tests.reliability.runs import differences, state
from tests.runs.conftest import (
    STEPS,
    Run,
    checkpoint,
    content,
    copied,
    logged,
    refusal,
    resolve,
    train_here,
)

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:Checkpoint directory .* exists and is not empty:UserWarning"
    ),
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
]


@pytest.fixture(scope="module")
def killed(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run, killed behind its first checkpoint."""
    place = tmp_path_factory.mktemp("killed")
    process = subprocess.Popen(
        command("train.py", *trained.overrides, f"run_dir={place / 'run'}"),
        cwd=place,
        env=environment(),
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            if line.startswith("step 6/"):
                break
        process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not checkpoint(place / "run", STEPS).exists()
    return place / "run"


@pytest.fixture
def interrupted(killed: Path, tmp_path: Path) -> Path:
    return copied(killed, tmp_path / "interrupted")


def end_differences(folder: Path, trained: Run) -> list[str]:
    got, wanted = (state(checkpoint(place, STEPS)) for place in (folder, trained.folder))
    return differences(got, wanted)


def test_killed_run_continues_bit_for_bit(trained: Run, interrupted: Path) -> None:
    start = newest(interrupted)
    assert start is not None
    step = content(start)["global_step"]
    words = ("train.py", *trained.overrides, f"run_dir={interrupted}", "resume=auto")
    result = run(*words, cwd=interrupted)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == f"resumed {start} step {step}"
    assert end_differences(interrupted, trained) == []

    reference = [row for row in logged(trained.folder) if "train/ce" in row][step:]
    resumed = [row for row in logged(interrupted, version=1) if "train/ce" in row]
    assert len(resumed) == STEPS - step
    for got, wanted in zip(resumed, reference, strict=True):
        for name in ("step", "train/lr", "train/loss", "moe/max_violation"):
            assert got[name] == wanted[name]


@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_checkpoint_knows_how_to_continue(trained: Run, interrupted: Path, form: str) -> None:
    start = newest(interrupted)
    train_here(f"resume={start if form == 'file' else interrupted}")
    assert end_differences(interrupted, trained) == []


def test_run_continues_behind_the_end_of_an_epoch(trained: Run, interrupted: Path) -> None:
    shutil.rmtree(interrupted / "checkpoints")
    (interrupted / "checkpoints").mkdir()
    shutil.copy(trained.folder / "config.json", interrupted)
    shutil.copy(checkpoint(trained.folder, 10), checkpoint(interrupted, 10))
    train_here(f"resume={checkpoint(interrupted, 10)}")
    assert end_differences(interrupted, trained) == []


def test_auto_needs_a_run_folder(trained: Run) -> None:
    assert "run_dir" in refusal(lambda: resolve(trained, "resume=auto"))


@pytest.mark.parametrize("make", [False, True])
def test_auto_starts_fresh_in_an_empty_folder(trained: Run, tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "run"
    if make:
        folder.mkdir()
    cfg = resolve(trained, "resume=auto", f"run_dir={folder}")
    assert (cfg.resume, cfg.run_dir) == (None, str(folder))


def test_auto_starts_fresh_where_a_run_died_before_its_first_checkpoint(
    trained: Run, interrupted: Path
) -> None:
    shutil.rmtree(interrupted / "checkpoints")
    assert resolve(trained, "resume=auto", f"run_dir={interrupted}").resume is None


def test_auto_starts_fresh_where_a_run_died_while_it_wrote_its_first_file(
    trained: Run, tmp_path: Path
) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.json.abc.tmp").mkdir()
    words = [*trained.overrides, f"run_dir={tmp_path}", "resume=auto", "trainer.max_steps=1"]
    train_here(*words)
    assert not (tmp_path / ".config.json.abc.tmp").exists()
    assert newest(tmp_path) == checkpoint(tmp_path, 1)


def test_a_folder_in_use_is_said_to_be_whatever_it_continued(trained: Run, tmp_path: Path) -> None:
    place = copied(trained.folder, tmp_path / "run")
    train_here(f"run_dir={place}", "resume=auto", "trainer.max_steps=13")
    assert "not empty" in refusal(lambda: resolve(trained, f"run_dir={place}"))


@pytest.mark.parametrize("below", ["run/checkpoints", "link"])
def test_the_newest_checkpoint_is_so_by_any_path(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    copied(trained.folder, tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run" / "checkpoints")
    monkeypatch.chdir(tmp_path / below)
    cfg = resolve(trained, f"resume={checkpoint(trained.folder, STEPS).name}")
    assert Path(cfg.run_dir).resolve() == tmp_path / "run"


def test_the_run_keeps_its_id_in_its_folder_only(trained: Run, tmp_path: Path) -> None:
    path = checkpoint(trained.folder, STEPS)
    run_id = content(path)["mla_lm"]["config"]["run_id"]
    assert resolve(trained, f"resume={trained.folder}").run_id == run_id
    branch = resolve(trained, f"resume={path}", f"run_dir={tmp_path / 'branch'}")
    assert branch.run_id != run_id


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    with claimed(tmp_path, key="run_dir"):
        message = refusal(lambda: claimed(tmp_path, key="run_dir").__enter__())
    assert "another process" in message
    with claimed(tmp_path, key="run_dir"):
        pass


def test_another_folder_must_be_empty(trained: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    words = (f"resume={trained.folder}", f"run_dir={tmp_path}")
    assert "not empty" in refusal(lambda: resolve(trained, *words))
    fresh = resolve(trained, f"resume={trained.folder}", f"run_dir={tmp_path / 'new'}")
    assert fresh.run_dir == str(tmp_path / "new")


def test_a_lone_checkpoint_does_not_write_beside_itself(trained: Run, tmp_path: Path) -> None:
    lone = shutil.copy(checkpoint(trained.folder, STEPS), tmp_path / "x.ckpt")
    assert "not empty" in refusal(lambda: resolve(trained, f"resume={lone}"))


def test_an_older_checkpoint_needs_a_folder_of_its_own(trained: Run, tmp_path: Path) -> None:
    older = f"resume={checkpoint(trained.folder, 10)}"
    assert "later checkpoints" in refusal(lambda: resolve(trained, older))
    assert resolve(trained, older, f"run_dir={tmp_path / 'branch'}").resume is not None


def test_a_damaged_end_is_written_again(trained: Run, tmp_path: Path) -> None:
    folder = copied(trained.folder, tmp_path / "run")
    last = checkpoint(folder, STEPS)
    last.write_bytes(last.read_bytes()[:1000])
    train_here(f"resume={folder}")
    assert newest(folder) == last
    assert end_differences(folder, trained) == []
