"""A study: arms that differ in few overrides, seeds, and what must be equal between the arms.

A file of `configs/ablation/`, or any YAML file of that form. A cell is one training run: an arm
with a seed and a learning rate.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BeforeValidator, Field, Strict, model_validator

from mla_lm.ablation.budget import solve
from mla_lm.config import CONFIGS, RunConfig
from mla_lm.config.compose import load_config, validate, with_values
from mla_lm.config.explain import key_of
from mla_lm.config.section import Positive, Rules, Section, Strings
from mla_lm.errors import UserError

FOLDER = CONFIGS / "ablation"
OWN = ("run_dir", "run_id", "seed", "resume")  # of each cell
Seed = Annotated[int, Strict(False), Field(ge=0, lt=2**32)]
Numbers = BeforeValidator(lambda given: given.split(",") if isinstance(given, str) else given)


class Arm(Section):
    """Overrides, and the width that is free to meet the budget where it is not the study's."""

    overrides: Strings
    free: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, given: Any) -> Any:
        return given if isinstance(given, Mapping) else {"overrides": given}


class Study(Section):
    """`reference` is the arm the others are matched to and compared with."""

    question: str
    base: Strings = ()
    arms: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.+-]*$")], Arm]
    reference: str
    match: Literal["params", "active_params", "train_flops", "kv_bytes", "none"] = "none"
    free: str = "expert"
    seeds: Annotated[tuple[Seed, ...], Strict(False), Numbers] = (1, 2, 3)
    lr_grid: Annotated[tuple[Annotated[Positive, Strict(False)], ...], Strict(False), Numbers] = ()
    confidence: Annotated[
        Annotated[float, Strict(False), Field(gt=0, lt=1)] | None,
        BeforeValidator(lambda given: None if given == "null" else given),
    ] = 0.95

    def rules(self) -> Rules:
        known = ", ".join(self.arms)
        yield "reference", self.reference in self.arms, f"must be one of the arms {known}"
        yield "seeds", len(set(self.seeds)) == len(self.seeds) > 0, "must be different numbers"
        enough = self.confidence is None or len(self.seeds) > 1
        rule = "must be at least 2 for a confidence interval; or say confidence=null"
        yield "seeds", enough, rule
        distinct = len({f"{lr:g}" for lr in self.lr_grid}) == len(self.lr_grid)
        yield "lr_grid", distinct, "must be different numbers"


def load_study(name: str, changes: Mapping[str, Any], overrides: Sequence[str]) -> Study:
    """The study of that name or file, with keys changed and `overrides` for every cell.

    Raises UserError for an unknown name, key or value.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
        raise UserError(f"ablation={name}: unknown choice; choose from {known}, or a YAML file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a mapping")
    study = validate(Study, {**values, **changes})
    return study.model_copy(update={"base": (*study.base, *overrides)})


class Cell(NamedTuple):
    """One run of an arm; `lr` None: at the learning rate of its configuration."""

    arm: str
    seed: int
    lr: float | None = None

    @property
    def name(self) -> str:
        """The name of its folder."""
        rate = "" if self.lr is None else f"-lr{self.lr:g}"
        return f"{self.arm}{rate}-s{self.seed}"


class Plan(NamedTuple):
    """What each arm is once it meets the budget, and the keys that were set for that."""

    study: Study
    configs: dict[str, RunConfig]
    solved: dict[str, dict[str, int]]

    def cell_config(self, cell: Cell, folder: Path, run_id: str | None) -> RunConfig:
        """The configuration of a cell in its folder, where it resumes by itself."""
        cfg = _compose(self.study, cell.arm, run_dir=str(folder), run_id=run_id)
        lr = cell.lr or cfg.optim.lr
        own = {"seed": cell.seed, "resume": "auto", "optim.lr": lr}
        return with_values(cfg, {**self.solved[cell.arm], **own})


def plan(study: Study) -> Plan:
    """Compose every arm and solve its budget; UserError where one cannot be matched or trained."""
    planned = Plan(study, {}, {})
    reference = _compose(study, study.reference)
    for name, arm in study.arms.items():
        try:
            cfg, planned.solved[name] = solve(
                reference, _compose(study, name), match=study.match, free=arm.free or study.free
            )
            _require_comparable(cfg)
        except UserError as error:
            raise UserError(f"arm {name}: {error}") from None
        planned.configs[name] = cfg
    return planned


def _compose(study: Study, arm: str, **own: str | None) -> RunConfig:
    overrides = [*study.base, *study.arms[arm].overrides]
    for key in map(key_of, overrides):
        if key in OWN:
            raise UserError(f"{key}: the study gives each cell its own; leave it out")
    return load_config(overrides, **own)


def _require_comparable(cfg: RunConfig) -> None:
    if cfg.trainer.max_minutes is not None:
        raise UserError("trainer.max_minutes: arms would differ in steps; give trainer.max_steps")
    if not any(node and "CSVLogger" in node["_target_"] for node in cfg.logger.values()):
        raise UserError("logger: a study reads the files of logger=csv")


def sweep_cells(study: Study) -> list[Cell]:
    """The first seed of every arm at every learning rate of the grid."""
    return [Cell(arm, study.seeds[0], lr) for lr in study.lr_grid for arm in study.arms]


def cells(study: Study, best: Mapping[str, float]) -> list[Cell]:
    """Every seed of every arm, seed by seed; after a sweep the other seeds, at the `best` rates."""
    if not study.lr_grid:
        return [Cell(arm, seed) for seed in study.seeds for arm in study.arms]
    arms = [arm for arm in study.arms if arm in best]
    return [Cell(arm, seed, best[arm]) for seed in study.seeds[1:] for arm in arms]
