"""How many steps a budget of minutes holds, from what a rehearsal measured."""

import pytest

from mla_lm.config import RunConfig
from mla_lm.errors import UserError
from mla_lm.training.plan import Pace, settled, within
from tests.conftest import load_config

QUICK = Pace(start=2.0, step=0.1, validation=0.5)


def budgeted(*overrides: str) -> RunConfig:
    return load_config(["trainer.max_minutes=1", "trainer.max_steps=100000", *overrides])


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
    assert tried == [(192, 16), (48, 16), (48, 8)]
    assert (cfg.model.dim, cfg.data.batch_size, cfg.optim.lr) == (48, 8, 0.004)
    assert 100 <= cfg.trainer.max_steps <= 60 / 0.048 / 8


def test_the_last_fallback_is_taken_however_few_steps_it_holds() -> None:
    own = ["trainer.max_minutes=1", "trainer.min_steps=100", "trainer.fallbacks=['model=nano']"]
    cfg, minutes = settled(
        load_config(own), lambda taken: load_config([*taken, *own]), lambda _: Pace(0.0, 1.0, 0.1)
    )
    assert (cfg.model.dim, cfg.trainer.max_steps) == (48, 56)
    assert minutes == pytest.approx(56.4 / 60, abs=0.01)
