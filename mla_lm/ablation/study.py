"""A study: arms that differ in few overrides, seeds, and what must be equal between the arms.

A file of `configs/ablation/`, or any YAML file of that form. Each arm is composed once into a
typed configuration; a cell is one training run, its arm with a seed, a rate and a folder.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BeforeValidator, Field, Strict

from mla_lm.ablation.budget import solve
from mla_lm.config import CONFIGS, RunConfig
from mla_lm.config.compose import load_config, validate, with_values
from mla_lm.config.explain import key_of
from mla_lm.config.section import Rules, Section, Strings, value_at
from mla_lm.errors import UserError

FOLDER = CONFIGS / "ablation"
OWN = ("run_dir", "run_id", "seed", "resume")  # of each cell
PLACE = {"run_dir": "RUN_DIR", "run_id": "RUN_ID"}  # in an arm, until a cell has its own


def _without_own(overrides: Sequence[str]) -> tuple[bool, str]:
    free = set(OWN).isdisjoint(map(key_of, overrides))
    return free, f"must leave {', '.join(OWN)} to the study"


class Arm(Section):
    """Overrides, and the width that is free to meet the budget where it is not the study's."""

    overrides: Strings
    free: str | None = None

    def rules(self) -> Rules:
        yield "overrides", *_without_own(self.overrides)


def _arms(given: Any) -> Any:
    if not isinstance(given, Mapping):
        return given
    return {
        name: arm if isinstance(arm, Mapping) else {"overrides": arm} for name, arm in given.items()
    }


class Study(Section):
    """`reference` is the arm the others are matched to and compared with."""

    question: str
    base: Strings = ()
    arms: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.+-]*$")], Arm],
        BeforeValidator(_arms),
        Field(min_length=1),
    ]
    reference: str
    match: Literal["params", "active_params", "train_flops", "kv_bytes", "none"] = "none"
    free: str = "expert"
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Strict(False)] = (1, 2, 3)
    lr_grid: Annotated[tuple[Annotated[float, Strict(False), Field(gt=0)], ...], Strict(False)] = ()
    confidence: Annotated[float, Field(gt=0, lt=1)] | None = 0.95

    def rules(self) -> Rules:
        known = ", ".join(self.arms)
        yield "reference", self.reference in self.arms, f"must be one of the arms {known}"
        yield "seeds", len(set(self.seeds)) == len(self.seeds) > 0, "must be different numbers"
        enough = self.confidence is None or len(self.seeds) > 1
        rule = "must be at least 2 for a confidence interval; or say confidence=null"
        yield "seeds", enough, rule
        distinct = len({f"{lr:g}" for lr in self.lr_grid}) == len(self.lr_grid)
        yield "lr_grid", distinct, "must be different numbers"
        yield "base", *_without_own(self.base)


def load_study(name: str, changes: Mapping[str, Any], overrides: Sequence[str]) -> Study:
    """The study of that name or file, with keys changed and `overrides` for every cell.

    Raises UserError for an unknown name, key or value.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
        raise UserError(f"ablation={name}: unknown choice; choose from {known}, or a YAML file")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a mapping")
    study = validate(Study, {**values, **changes})
    for override in overrides:
        if (key := key_of(override)) in OWN:
            raise UserError(f"{key}: the study gives each cell its own; leave it out")
    return study.model_copy(update={"base": (*study.base, *overrides)})


class Plan(NamedTuple):
    """What each arm is once it meets the budget, and the keys that were set for that."""

    configs: dict[str, RunConfig]
    solved: dict[str, dict[str, int]]


def plan(study: Study) -> Plan:
    """Compose every arm and solve its budget; UserError where one cannot be matched or trained."""
    configs, solved = {}, {}
    reference = load_config([*study.base, *study.arms[study.reference].overrides], **PLACE)
    for name, arm in study.arms.items():
        cfg = load_config([*study.base, *arm.overrides], **PLACE)
        try:
            free = arm.free or study.free
            cfg, solved[name] = solve(reference, cfg, match=study.match, free=free)
        except UserError as error:
            raise UserError(f"arm {name}: {error}") from None
        for key, holds, rule in _needed(cfg):
            if not holds:
                raise UserError(f"arm {name}: {key}={value_at(cfg, key)}: {rule}")
        configs[name] = cfg
    return Plan(configs, solved)


def _needed(cfg: RunConfig) -> Rules:
    """What a study needs of each run."""
    steps = cfg.trainer.max_steps
    validated = steps % cfg.trainer.val_every_n_steps == 0
    rule = f"must divide trainer.max_steps={steps}, so that the end is validated"
    yield "trainer.val_every_n_steps", validated, rule
    written = any(node and "CSVLogger" in node["_target_"] for node in cfg.logger.values())
    yield "logger", written, "a study reads the files of logger=csv"


class Cell(NamedTuple):
    """One run of an arm."""

    name: str
    arm: str
    seed: int
    lr: float

    def config(self, arm: RunConfig, folder: Path) -> RunConfig:
        """The configuration of this cell in its folder, where it resumes by itself."""
        own = {"run_dir": str(folder), "run_id": f"c{secrets.token_hex(4)}"}
        text = json.dumps([arm.logger, arm.callbacks])  # which name folder and id, too
        for key, value in own.items():
            text = text.replace(PLACE[key], json.dumps(value)[1:-1])
        logger, callbacks = json.loads(text)
        rest = {"seed": self.seed, "resume": "auto", "logger": logger, "callbacks": callbacks}
        return with_values(arm, {**own, **rest, "optim.lr": self.lr})


def sweep_cells(study: Study) -> list[Cell]:
    """The first seed of every arm at every learning rate of the grid."""
    seed = study.seeds[0]
    return [
        Cell(f"{arm}-lr{lr:g}-s{seed}", arm, seed, lr) for lr in study.lr_grid for arm in study.arms
    ]


def cells(study: Study, planned: Plan, best: Mapping[str, float]) -> list[Cell]:
    """Every seed of every arm, seed by seed; of a swept study those left, at the `best` rates."""
    if study.lr_grid:
        return [
            Cell(f"{arm}-lr{best[arm]:g}-s{seed}", arm, seed, best[arm])
            for seed in study.seeds[1:]
            for arm in planned.configs
            if arm in best
        ]
    return [
        Cell(f"{arm}-s{seed}", arm, seed, cfg.optim.lr)
        for seed in study.seeds
        for arm, cfg in planned.configs.items()
    ]
