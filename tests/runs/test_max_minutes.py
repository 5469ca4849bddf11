"""A run with a budget of minutes: what the rehearsal leaves behind, and how it is resumed."""

from pathlib import Path

import pytest

from mla_lm.training import plan
from mla_lm.training.plan import Steps
from tests.conftest import one_line
from tests.reliability.runs import differences, state
from tests.runs.conftest import Run, checkpoint, content, resolve, train_here


def test_a_rehearsal_changes_no_bit_and_leaves_no_file(trained: Run, tmp_path: Path) -> None:
    words = (*trained.overrides, "trainer.max_steps=4")
    train_here(*words, f"run_dir={tmp_path / 'plain'}")
    train_here(*words, f"run_dir={tmp_path / 'planned'}", "trainer.max_minutes=60")
    plain, planned = (tmp_path / name for name in ("plain", "planned"))
    differing = differences(state(checkpoint(planned, 4)), state(checkpoint(plain, 4)))
    assert all(".trainer." in place or ".command" in place for place in differing)
    names = [{str(p.relative_to(of)) for p in of.rglob("*")} for of in (plain, planned)]
    assert names[0] == names[1]


@pytest.fixture
def planned(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run whose budget held 6 of 50 steps, with validations at each third."""
    monkeypatch.setattr(plan, "within", lambda *_: Steps(6, 3))
    words = [*trained.overrides, "trainer.max_minutes=0.1", "trainer.max_steps=50"]
    words += ["trainer.val_every_n_steps=null", f"run_dir={tmp_path / 'run'}"]
    train_here(*words)
    return Run(tmp_path / "run", tuple(words), "")


def test_the_plan_is_part_of_the_checkpoint(planned: Run) -> None:
    stored = content(checkpoint(planned.folder, 6))["mla_lm"]["config"]["trainer"]
    assert (stored["max_steps"], stored["val_every_n_steps"]) == (6, 3)
    again = resolve(planned, "resume=auto").trainer
    assert (again.max_steps, again.validation_interval) == (6, 3)
    line = "trainer.max_minutes=2.0: "
    assert line in one_line(lambda: resolve(planned, "resume=auto", "trainer.max_minutes=2"))
    own = [word for word in planned.overrides if not word.startswith("trainer.m")]
    longer = resolve(planned._replace(overrides=(*own, "trainer.max_steps=9")), "resume=auto")
    assert longer.trainer.max_steps == 9


def test_a_budget_that_holds_no_step_is_refused(trained: Run, tmp_path: Path) -> None:
    words = (*trained.overrides, f"run_dir={tmp_path / 'run'}", "trainer.max_minutes=1e-9")
    assert "too short for a step; here the first takes" in one_line(lambda: train_here(*words))
    assert not (tmp_path / "run").exists()
