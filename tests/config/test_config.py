"""Every option of every group composes and validates; defaults live in YAML only."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from mla_lm import load_config
from mla_lm.config import EvalConfig, RunConfig, YarnConfig
from mla_lm.config import compose as cli
from mla_lm.errors import UserError
from tests.processes import ROOT, environment

CONFIGS = ROOT / "configs"
FILES = ("data=text", "data=jsonl", "data=parquet")
NEEDS = dict.fromkeys(FILES, ("data.path=my.txt",)) | {
    "data=hub": ("data.name=owner/set",),
    "model/ffn=dense": ("balance=none",),
    "experiment=stories": ("data.path=x",),
    "experiment=small_text": ("data.path=x",),
    "experiment=long_context": ("init_from=x",),
    "experiment=continue_imported": ("init_from=x",),
    "data/tokenizer=pretrained": ("data.tokenizer.path=x", "data.tokenizer.vocab_size=1000"),
}
PRESETS = {"tinystories": "hub", "fineweb_edu": "hub", "wikitext": "hub"}
SIZES = sorted(p.stem for p in (CONFIGS / "model").glob("[!_]*.yaml"))
ATTENTIONS = sorted(p.stem for p in (CONFIGS / "model" / "attention").glob("*.yaml"))


def options() -> list[str]:
    """GROUP=NAME for every file of every group; studies are no group."""
    files = (p.relative_to(CONFIGS) for p in sorted(CONFIGS.rglob("[!_]*.yaml")))
    return [f"{p.parent}={p.stem}" for p in files if len(p.parts) > 1 and p.parts[0] != "ablation"]


def sections(kind: type[BaseModel]) -> set[type[BaseModel]]:
    """`kind` and every section below it."""
    found = {kind}
    for field in kind.model_fields.values():
        parts: list[Any] = [field.annotation]
        while parts:
            part = parts.pop()
            if isinstance(part, type) and issubclass(part, BaseModel):
                found |= sections(part)
            parts += get_args(part)
    return found


def test_options_are_found() -> None:
    assert {"model=nano", "model/attention=mla", "logger=csv", "data=text"} <= set(options())


@pytest.mark.parametrize("option", options())
def test_every_option_validates(option: str) -> None:
    cfg = load_config([option, *NEEDS.get(option, ())])
    group, _, name = option.partition("=")
    node: Any = cfg
    for part in () if group == "experiment" else group.split("/"):
        node = getattr(node, part)
    if hasattr(node, "kind"):
        assert node.kind == PRESETS.get(name, name)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_size_presets_do_not_bind_the_groups_below_them(size: str, attention: str) -> None:
    cfg = load_config(
        [f"model={size}", f"model/attention={attention}", "model/ffn=dense", "balance=none"]
    )
    assert cfg.model.attention.kind == attention
    assert cfg.model.ffn.kind == "dense"


def test_command_line_wins_over_every_group() -> None:
    cfg = load_config(["model.dim=64", "model=nano", "model.attention.kv_lora_rank=24"])
    assert cfg.model.dim == 64
    assert cfg.model.attention.kind == "mla"
    assert cfg.model.attention.kv_lora_rank == 24


def test_size_keys_reach_the_chosen_options() -> None:
    cfg = load_config(["model=nano", "model/attention=gqa", "model.sizes.head_dim=22"])
    assert cfg.model.attention.kind == "gqa"
    assert cfg.model.attention.head_dim == 22


@pytest.mark.parametrize(
    ("words", "factor"),
    [
        ((), 1.0),
        (("data.seq_len=1000",), 3.90625),
        (("data.seq_len=64",), 1.0),
        (("data.seq_len=64", "model.rope.original_max_seq_len=16"), 4.0),
        (("model.rope.factor=8.0",), 8.0),
    ],
)
def test_yarn_stretches_as_far_as_the_context_needs(words: tuple[str, ...], factor: float) -> None:
    rope = load_config(["model/rope=yarn", *words]).model.rope
    assert isinstance(rope, YarnConfig)
    assert rope.factor == factor


@pytest.mark.parametrize("word", ["model.rope.original_max_seq_len=0", "model.max_seq_len=long"])
def test_a_bad_size_is_named_and_not_the_factor_made_of_it(word: str) -> None:
    with pytest.raises(UserError, match=f"^{word}: "):
        load_config(["model/rope=yarn", word])


@pytest.mark.parametrize("kind", [RunConfig, EvalConfig])
def test_defaults_live_in_yaml_only(kind: type[BaseModel]) -> None:
    with_default = {
        f"{section.__name__}.{name}"
        for section in sections(kind)
        for name, field in section.model_fields.items()
        if not field.is_required()
    }
    assert with_default <= {"ModelConfig.sizes"}


def test_every_section_is_frozen_and_refuses_unknown_keys() -> None:
    found = sections(RunConfig) | sections(EvalConfig)
    assert len(found) > 10
    for section in found:
        assert section.model_config.get("frozen"), section
        assert section.model_config.get("extra") == "forbid", section


def test_a_configuration_cannot_be_changed() -> None:
    cfg = load_config(["model=nano"])
    with pytest.raises(ValidationError, match="frozen"):
        cfg.model.dim = 3  # type: ignore[misc]


def test_load_config_is_deterministic_apart_from_the_run_folder() -> None:
    first, second = (load_config(["model=nano", "run_dir=x", "run_id=y"]) for _ in range(2))
    assert first == second
    unnamed = load_config(["model=nano"])
    assert unnamed.run_dir.startswith("runs/")
    assert unnamed.run_id != load_config(["model=nano"]).run_id
    apart = {"run_dir", "run_id", "logger"}
    assert unnamed.model_dump(exclude=apart) == first.model_dump(exclude=apart)


def test_json_of_a_configuration_is_the_configuration() -> None:
    cfg = load_config(["model=nano", "resume_allow=[data.path]"])
    again = RunConfig.model_validate(json.loads(cfg.model_dump_json()))
    assert again.model_dump() == cfg.model_dump()


def test_saved_configuration_is_resolved() -> None:
    assert "${" not in load_config(["run_dir=there"]).model_dump_json()
    assert load_config(["run_dir=there"]).logger["csv"]["save_dir"] == "there"


def test_eval_options_compose() -> None:
    cfg = cli.validate(EvalConfig, cli.compose("eval", ["ckpt=runs/first", "limit=3"]))
    assert (cfg.ckpt, cfg.limit, cfg.precision) == ("runs/first", 3, "auto")


def test_configuration_needs_neither_torch_nor_lightning(tmp_path: Path) -> None:
    heavy = "[m for m in ('torch', 'lightning', 'transformers', 'wandb') if m in sys.modules]"
    code = (
        "import sys, mla_lm, mla_lm.config, mla_lm.config.compose\n"
        f"print({heavy}, 'hydra' in sys.modules)\n"
        "mla_lm.load_config(['model=nano'])\n"
        f"print({heavy})\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines() == ["[] False", "[]"]
