"""How many steps a budget of minutes holds, from what a rehearsal measured."""

from types import SimpleNamespace

import pytest

from mla_lm.config import RunConfig
from mla_lm.errors import UserError
from mla_lm.training import plan
from mla_lm.training.plan import Pace, settled, within
from tests.conftest import load_config

QUICK = Pace(start=2.0, step=0.1, validation=0.5)


@pytest.fixture(autouse=True)
def _no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the tests themselves take."""
    monkeypatch.setattr(plan, "time", SimpleNamespace(perf_counter=lambda: 0.0))


def budgeted(*overrides: str) -> RunConfig:
    return load_config(["trainer.max_minutes=1", *overrides])


@pytest.mark.parametrize("every", ["null", "50"])
@pytest.mark.parametrize(
    "pace", [QUICK, Pace(0.0, 0.001, 2.0), Pace(10.0, 1.7, 4.0), Pace(1.0, 9.0, 15.0)]
)
def test_a_plan_fills_its_seconds_and_ends_with_a_validation(pace: Pace, every: str) -> None:
    cfg = budgeted(f"trainer.val_every_n_steps={every}").trainer
    found = within(cfg, pace, 60)
    assert 60 - 5 * pace.step - pace.validation < pace.of_run(found) <= 60
    if every == "null":
        assert found.max_steps % found.val_every_n_steps == 0


def test_validations_are_fewer_where_they_take_long() -> None:
    found = [within(budgeted().trainer, Pace(2.0, 0.1, seconds), 60) for seconds in (1, 2, 4)]
    assert [steps // every for steps, every in found] == [4, 2, 1]


def test_max_steps_stays_the_limit() -> None:
    assert within(budgeted("trainer.max_steps=7").trainer, QUICK, 60) == (7, 2)


def test_a_budget_without_a_step_says_what_a_step_takes() -> None:
    with pytest.raises(UserError, match=r"max_minutes=1: too short.* others 70\.0 s"):
        settled(budgeted(), lambda _: budgeted(), lambda _: Pace(1.0, 70.0, 3.0))


def test_the_first_fallback_that_holds_min_steps_is_taken() -> None:
    tried = []

    def rehearse(cfg: RunConfig) -> Pace:
        tried.append((cfg.model.dim, cfg.data.batch_size))
        return Pace(start=0.0, step=0.001 * cfg.model.dim * cfg.data.batch_size, validation=0.1)

    fallbacks = "trainer.fallbacks=['model=nano','data.batch_size=8 optim.lr=0.004','seed=2']"
    own = ["trainer.max_minutes=1", "trainer.min_steps=100", fallbacks]
    cfg, _ = settled(load_config(own), lambda taken: load_config([*taken, *own]), rehearse)
    assert tried == [(192, 16), (192, 16), (48, 16), (48, 16), (48, 8)]
    assert (cfg.model.dim, cfg.data.batch_size, cfg.optim.lr) == (48, 8, 0.004)
    assert 100 <= cfg.trainer.max_steps <= 60 / 0.048 / 8


def test_a_busy_moment_takes_no_fallback() -> None:
    paces = [Pace(0.0, 1.0, 0.1), Pace(0.0, 0.1, 2.0)]
    own = ["trainer.max_minutes=1", "trainer.min_steps=100", "trainer.fallbacks=['model=nano']"]
    cfg, _ = settled(
        load_config(own), lambda taken: load_config([*taken, *own]), lambda _: paces.pop(0)
    )
    assert (cfg.model.dim, paces) == (192, [])


@pytest.mark.parametrize(("max_steps", "limits"), [(7, True), (10**6, False)])
def test_a_run_that_max_steps_limits_says_so(
    max_steps: int, limits: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = budgeted(f"trainer.max_steps={max_steps}")
    assert (settled(cfg, lambda _: cfg, lambda _: QUICK)[0].trainer.max_steps == 7) == limits
    assert ("trainer.max_steps=7 is reached" in capsys.readouterr().out) == limits


def test_the_last_fallback_is_taken_however_few_steps_it_holds() -> None:
    own = ["trainer.max_minutes=1", "trainer.min_steps=100", "trainer.fallbacks=['model=nano']"]
    cfg, minutes = settled(
        load_config(own), lambda taken: load_config([*taken, *own]), lambda _: Pace(0.0, 1.0, 0.1)
    )
    assert (cfg.model.dim, cfg.trainer.max_steps) == (48, 56)
    assert minutes == pytest.approx(56.4 / 60, abs=0.01)
