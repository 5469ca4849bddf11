"""What `resume=` takes up: which file, in which folder, what may differ, and what never may.

That it goes on bit for bit is proven in tests/reliability.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import train as application
from mla_lm import load_config
from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.checkpoint.find import read
from mla_lm.checkpoint.resume import Origin
from mla_lm.errors import UserError
from mla_lm.files import claimed
from mla_lm.machine import hardware
from mla_lm.objective.schedules import lr_multiplier
from mla_lm.training.plots import ExpertLoad
from tests.conftest import one_line
from tests.reliability.runs import differences, state
from tests.runs.conftest import STEPS, Run, checkpoint, content, logged, resolve, train_here


def test_a_run_folder_is_all_that_is_needed(trained: Run, tmp_path: Path) -> None:
    """And the user's own cache, if any.

    Steps are logged, and each has its samples once, as in an undisturbed run.
    """
    folder = Path(shutil.copytree(trained.folder, tmp_path / "run"))
    checkpoint(folder, STEPS).unlink()
    train_here(f"resume={folder}", f"data.cache_dir={trained.folder.parent / 'cache'}")
    wanted, found = (state(checkpoint(place, STEPS)) for place in (trained.folder, folder))
    assert differences(found, wanted) == []
    headings = [line for line in (folder / "samples.md").read_text().splitlines() if "## " in line]
    assert headings == ["## step 4", "## step 8", "## step 12"]
    logs = logged(trained.folder), logged(folder, version=1)
    before, after = ([row for row in log if "train/ce" in row] for log in logs)
    for row, wanted_row in zip(after, before[10:], strict=True):
        for name in ("step", "train/lr", "train/loss", "moe/max_violation"):
            assert row[name] == wanted_row[name]


def test_what_is_only_for_people_fails_with_a_warning_after_the_save(
    trained: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(trained.folder, tmp_path / "run"))
    last = checkpoint(folder, STEPS)
    last.unlink()
    (folder / "samples.md").unlink()
    (folder / "samples.md").mkdir()
    shutil.rmtree(folder / "plots")
    (folder / "plots").touch()

    def shown(*_: object) -> None:
        raise RuntimeError(f"saved: {last.exists()}")

    monkeypatch.setattr(ExpertLoad, "show", shown)
    train_here(f"resume={folder}", f"data.cache_dir={trained.folder.parent / 'cache'}")
    assert differences(state(last), state(checkpoint(trained.folder, STEPS))) == []
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning: " in line]
    assert [line.split(": ")[1] for line in warnings] == ["Samples", "ExpertLoad", "Plots"]
    assert "saved: True" in warnings[1]
    assert all(str(folder) in line for line in (warnings[0], warnings[2]))


@pytest.mark.parametrize("left", [None, (), ("config.json",), (".lock", ".config.json.abc.tmp")])
def test_auto_starts_a_new_run_where_nothing_was_saved(
    trained: Run, tmp_path: Path, left: tuple[str, ...] | None
) -> None:
    folder = tmp_path / "run"
    if left is not None:
        folder.mkdir()
    for name in left or ():
        (folder / name).write_text("{}")
    cfg = resolve(trained, "resume=auto", f"run_dir={folder}")
    assert (cfg.resume, cfg.run_dir) == (None, str(folder))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("resume=auto", "resume=auto: needs run_dir=DIR"),
        ("run_dir={run}", ": not empty; name a new folder, or resume=auto"),
        ("resume={run} run_dir={elsewhere}", "elsewhere: not empty"),
        ("resume={elsewhere}/x.ckpt", "elsewhere: not empty"),
        ("resume=auto run_dir={empty}", "resumed x.ckpt and saved nothing; use a new folder"),
        ("resume={run}/checkpoints/step-000010.ckpt", "later checkpoints; name an empty run_dir"),
        ("resume={run} resume_allow=[sede]", "sede: no such key; do you mean seed"),
        ("resume={run} model/attention=gqa", "model.attention."),
        ("resume={run} resume_allow=[model.dim] model.dim=64", "trained with 48; start a new run"),
        (
            "resume={run} resume_allow=[optim.lr] optim.lr=0.1",
            "trained with 0.006; start a new",
        ),
        ("resume={run} optim.kind=adamw", "optim.kind=adamw: "),
        (
            "resume={run} data.batch_size=8",
            "trained with 4; start a new run, or pass 'resume_allow",
        ),
    ],
)
def test_refused_in_one_line(trained: Run, tmp_path: Path, words: str, line: str) -> None:
    places = {name: tmp_path / name for name in ("elsewhere", "empty")}
    for place in places.values():
        place.mkdir()
    (places["empty"] / "config.json").write_text('{"resume": "x.ckpt"}')
    shutil.copy(checkpoint(trained.folder, STEPS), places["elsewhere"] / "x.ckpt")
    asked = words.format(run=trained.folder, **places).split()
    assert line in one_line(lambda: resolve(trained, *asked))


@pytest.mark.parametrize("place", ["run", "checkpoint", "moved"])
def test_overrides_are_keys_of_the_run_that_is_resumed(
    trained: Run, tmp_path: Path, place: str
) -> None:
    """Whose corpus is text, where the default one has no `data.path`."""
    moved = shutil.copy(checkpoint(trained.folder, STEPS), tmp_path / "x.ckpt")
    places = {"run": trained.folder, "checkpoint": checkpoint(trained.folder, STEPS)}
    path = f"data.path={trained.folder.parent / 'text'}"
    cfg = application.configured([f"resume={places.get(place, moved)}", path])
    assert cfg.data == load_config(trained.overrides).data
    assert cfg.run_id != json.loads((trained.folder / "config.json").read_text())["run_id"]
    with pytest.raises(UserError, match=r"^data\.pat: unknown key; do you mean data\.path=x$"):
        application.configured(["resume=auto", f"run_dir={trained.folder}", "data.pat=x"])


@pytest.mark.parametrize(
    "override",
    ["data.seq_len=16", "data.batch_size=8", "seed=7", "trainer.accumulate_grad_batches=2"],
)
def test_a_change_may_be_allowed(trained: Run, override: str) -> None:
    key = override.split("=")[0]
    words = (f"resume={trained.folder}", override, "model.max_seq_len=32")
    assert f"pass 'resume_allow=[{key}]'" in one_line(lambda: resolve(trained, *words))
    allowed = resolve(trained, *words, f"resume_allow=[{key}]")
    assert allowed.resume == str(checkpoint(trained.folder, STEPS))


def test_a_longer_run_stays_in_its_folder_and_a_branch_gets_its_own_id(
    trained: Run, tmp_path: Path
) -> None:
    longer = resolve(trained, f"resume={trained.folder}", "trainer.max_steps=20")
    assert (longer.trainer.max_steps, longer.run_dir) == (20, str(trained.folder))
    run_id = content(checkpoint(trained.folder, STEPS))["mla_lm"]["config"]["run_id"]
    assert longer.run_id == run_id
    older = checkpoint(trained.folder, 10)
    branch = resolve(trained, f"resume={older}", f"run_dir={tmp_path / 'branch'}")
    assert (branch.resume, branch.run_dir) == (str(older), str(tmp_path / "branch"))
    assert branch.run_id != run_id


def test_a_longer_run_goes_on_at_the_rate_of_its_own_schedule(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(trained.folder, tmp_path / "run"))
    train_here(f"resume={folder}", f"trainer.max_steps={STEPS + 4}", "callbacks.samples=null")
    optim = load_config(trained.overrides).optim
    rate = optim.lr * lr_multiplier(STEPS, cfg=optim, max_steps=STEPS + 4)
    rates = [float(row["train/lr"]) for row in logged(folder, version=1) if "train/lr" in row]
    assert rates[0] == pytest.approx(rate)
    assert f"the learning rate is {rate:.3g}, not 0\n" in capsys.readouterr().out


def test_the_same_steps_in_other_parts_are_resumed_again(trained: Run, tmp_path: Path) -> None:
    """Before and behind the end of an epoch, in parts and whole again."""
    folder = Path(shutil.copytree(trained.folder, tmp_path / "run"))
    checkpoint(folder, STEPS).unlink()
    own = (f"data.cache_dir={trained.folder.parent / 'cache'}", "callbacks.samples=null")
    halves = ("data.batch_size=2", "trainer.accumulate_grad_batches=2")
    whole = ("data.batch_size=4", "trainer.accumulate_grad_batches=1")
    for steps, parts in ((13, halves), (22, ()), (24, whole)):
        train_here(f"resume={folder}", *own, f"trainer.max_steps={steps}", *parts)
    batches = content(checkpoint(folder, 24))["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    assert batches["total"]["ready"] == 24


@pytest.mark.parametrize("below", ["run/checkpoints", "link"])
def test_the_newest_checkpoint_is_so_by_any_path(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    shutil.copytree(trained.folder, tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run" / "checkpoints")
    monkeypatch.chdir(tmp_path / below)
    cfg = resolve(trained, f"resume={checkpoint(trained.folder, STEPS).name}")
    assert Path(cfg.run_dir).resolve() == tmp_path / "run"


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    with claimed(tmp_path, key="run_dir"):
        message = one_line(lambda: claimed(tmp_path, key="run_dir").__enter__())
    assert "another process" in message
    with claimed(tmp_path, key="run_dir"):
        pass


def test_changed_corpus_is_refused(trained: Run, tmp_path: Path) -> None:
    place = Path(shutil.copytree(trained.folder.parent, tmp_path / "moved"))
    text = place / "text" / "00.py"
    text.write_text(text.read_text() + "more = 1\n")
    words = ("data=text", f"data.path={place / 'text'}", "resume_allow=[data.path]")
    longer = (f"resume={place / 'run'}", "trainer.max_steps=14")
    message = one_line(lambda: train_here(*longer, *words))
    assert "trained with data corpus=" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [("threads", 64), ("world_size", 8), ("torch", "2.0.0"), ("precision", "bf16-mixed")],
)
def test_what_changes_the_bits_is_told_unless_allowed(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: Any
) -> None:
    path, stored = tmp_path / "x.ckpt", content(checkpoint(trained.folder, STEPS))
    stored["mla_lm"]["environment"][key] = value
    checkpoint_file.write(path, stored)
    for more in ((), (f"resume_allow=[{key}]",)):
        cfg = resolve(trained, f"resume={path}", f"run_dir={tmp_path / 'new'}", *more)
        here = hardware(cfg.precision, cfg.trainer.accelerator)
        record = read(path)[0]
        Origin(cfg, record).check(here.environment, record.data)
        said = capsys.readouterr().err
        assert said == "" if more else said.startswith(f"warning: {key}=")
        assert said.count("\n") == len(said.splitlines()) <= 1
