"""A study: arms that differ in few overrides, seeds, and what must be equal between the arms.

A file of `configs/ablation/`, or any YAML file of that form. A cell is one training run.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BeforeValidator, Field, Strict

from mla_lm.ablation.budget import AXES, solve
from mla_lm.config import CONFIGS, RunConfig
from mla_lm.config.compose import load_config, validate
from mla_lm.config.section import Rules, Section, Strings, value_at
from mla_lm.errors import UserError

FOLDER = CONFIGS / "ablation"
OWN = ("run_dir", "run_id", "seed", "resume")  # of each cell


class Arm(Section):
    """Overrides, and the width that is free to meet the budget where it is not the study's."""

    words: Strings
    free: str | None = None

    def rules(self) -> Rules:
        yield "words", free_of_own(self.words), f"must leave {', '.join(OWN)} to the study"


def free_of_own(words: Sequence[str]) -> bool:
    """Whether overrides leave alone what the study gives each cell."""
    return not any(word.lstrip("+").partition("=")[0] in OWN for word in words)


def _arms(given: Any) -> Any:
    if not isinstance(given, Mapping):
        return given
    return {
        name: arm if isinstance(arm, Mapping) else {"words": arm} for name, arm in given.items()
    }


class Study(Section):
    """`reference` is the arm the others are matched to and compared with."""

    question: str
    base: Strings
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
        yield "base", free_of_own(self.base), f"must leave {', '.join(OWN)} to the study"


class Cell(NamedTuple):
    """One run; `words` are its overrides without folder and resumption."""

    name: str
    arm: str
    seed: int
    words: tuple[str, ...]


def load_study(name: str, changes: Mapping[str, Any], words: Sequence[str]) -> Study:
    """The study of that name or file, with keys changed and `words` for every cell.

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
    study = validate(Study, {"base": [], **values, **changes})
    return validate(Study, {**study.model_dump(), "base": (*study.base, *words)})


class Plan(NamedTuple):
    """What each arm is, once it meets the budget."""

    words: dict[str, tuple[str, ...]]  # base included
    solved: dict[str, tuple[str, ...]]  # of them, what the budget added
    configs: dict[str, RunConfig]

    def digests(self) -> dict[str, str]:
        """SHA-256 of the configuration of every arm."""
        found = {}
        for arm, cfg in self.configs.items():
            content = cfg.model_dump_json(exclude={"run_dir", "run_id", "logger", "callbacks"})
            found[arm] = hashlib.sha256(content.encode()).hexdigest()
        return found

    def axes(self, arm: str) -> list[tuple[str, float]]:
        """The name of every axis, and where an arm stands on it."""
        return [(axis, of(self.configs[arm])) for axis, of in AXES.items()]


def plan(study: Study) -> Plan:
    """Solve the budget of every arm; UserError where one cannot be matched, or is no model."""
    words = {name: (*study.base, *arm.words) for name, arm in study.arms.items()}
    reference = load_config(words[study.reference])
    solved: dict[str, tuple[str, ...]] = {}
    for name, arm in study.arms.items():
        solved[name] = ()
        if name != study.reference:
            try:
                free = arm.free or study.free
                solved[name] = solve(reference, words[name], match=study.match, free=free)
            except UserError as error:
                raise UserError(f"arm {name}: {error}") from None
    words = {name: (*words[name], *solved[name]) for name in words}
    configs = {name: load_config(arm) for name, arm in words.items()}
    for name, cfg in configs.items():
        for key, holds, rule in needed(cfg):
            if not holds:
                raise UserError(f"arm {name}: {key}={value_at(cfg, key)}: {rule}")
    return Plan(words, solved, configs)


def needed(cfg: RunConfig) -> Rules:
    """What a study needs of each run."""
    steps = cfg.trainer.max_steps
    validated = steps % cfg.trainer.val_every_n_steps == 0
    rule = f"must divide trainer.max_steps={steps}, so that the end is validated"
    yield "trainer.val_every_n_steps", validated, rule
    targets = [node.get("_target_", "") for node in cfg.logger.values() if node]
    written = any(target.endswith("CSVLogger") for target in targets)
    yield "logger", written, "a study reads the files of logger=csv"


def sweep_cells(study: Study, planned: Plan) -> list[Cell]:
    """The first seed of every arm at every learning rate of the grid."""
    return [
        Cell(f"{arm}-lr{lr:g}-s{study.seeds[0]}", arm, study.seeds[0], (*words, f"optim.lr={lr}"))
        for lr in study.lr_grid
        for arm, words in planned.words.items()
    ]


def cells(study: Study, planned: Plan, best: Mapping[str, float]) -> list[Cell]:
    """Every seed of every arm, seed by seed; of a swept study those left, at its `best` rate."""
    found = []
    for seed in study.seeds[1:] if study.lr_grid else study.seeds:
        for arm, words in planned.words.items():
            if not study.lr_grid:
                found.append(Cell(f"{arm}-s{seed}", arm, seed, words))
            elif arm in best:
                lr = best[arm]
                found.append(Cell(f"{arm}-lr{lr:g}-s{seed}", arm, seed, (*words, f"optim.lr={lr}")))
    return found
