"""Overrides become a typed configuration; one configuration becomes another without overrides."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from pydantic import BaseModel

import eval as application
from mla_lm import load_config
from mla_lm.commands.generate import Options
from mla_lm.config import CONFIGS, EvalConfig, RunConfig, YarnConfig, cli
from mla_lm.config.compose import compose, with_overrides, with_values
from mla_lm.config.section import Section, leaves
from mla_lm.config.text import typed
from mla_lm.errors import UserError
from tests.processes import run

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


def below(kind: type[BaseModel]) -> list[type[BaseModel]]:
    """`kind` and every class derived from it."""
    return [kind, *(one for child in kind.__subclasses__() for one in below(child))]


def differing(one: RunConfig, other: RunConfig) -> dict[str, Any]:
    """The keys in which `other` differs from `one`, and what it has there."""
    before, after = (dict(leaves(cfg.model_dump(mode="json"))) for cfg in (one, other))
    return {key: value for key, value in after.items() if before.get(key, ...) != value}


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
    assert (cfg.model.attention.kind, cfg.model.ffn.kind) == (attention, "dense")


def test_overrides_win_over_every_group_and_sizes_reach_the_options() -> None:
    cfg = load_config(
        ["model.dim=64", "model=nano", "model/attention=gqa", "model.sizes.head_dim=22"]
    )
    assert (cfg.model.dim, dict(cfg.model.attention)["head_dim"]) == (64, 22)
    assert "sizes" not in cfg.model.model_dump()


@pytest.mark.parametrize(
    ("override", "factor"),
    [("seed=1", 1.0), ("data.seq_len=1000", 3.90625), ("model.rope.factor=8.0", 8.0)],
)
def test_yarn_stretches_as_far_as_the_context_needs(override: str, factor: float) -> None:
    rope = load_config(["model/rope=yarn", override]).model.rope
    assert isinstance(rope, YarnConfig)
    assert rope.factor == factor


def test_sections_are_frozen_and_strict_and_have_no_defaults() -> None:
    """Defaults live in YAML only."""
    sections = [kind for kind in below(Section) if kind.__module__.startswith("mla_lm.config.")]
    assert {RunConfig, EvalConfig} < {*sections}
    for section in sections:
        assert section.model_config.get("frozen"), section
        assert section.model_config.get("extra") == "forbid", section
        assert all(field.is_required() for field in section.model_fields.values()), section


def test_load_config_is_deterministic_apart_from_folder_and_id() -> None:
    first, second = (load_config(["model=nano"], run_dir="x", run_id="y") for _ in range(2))
    assert first == second
    assert first.logger["csv"]["save_dir"] == "x"
    assert "${" not in first.model_dump_json()
    assert RunConfig.model_validate(json.loads(first.model_dump_json())) == first
    unnamed = load_config(["model=nano"])
    again = load_config(["model=nano"])
    assert unnamed.run_id != again.run_id
    assert unnamed.run_dir != again.run_dir  # though begun in the same second
    assert {*differing(first, unnamed)} == {"run_dir", "run_id", "logger.csv.save_dir"}


def test_values_are_set_and_validated() -> None:
    cfg = load_config(["model=nano"])
    changed = with_values(cfg, {"model.dim": 64, "seed": 5, "optim.betas": (0.5, 0.9)})
    assert differing(cfg, changed) == {"model.dim": 64, "seed": 5, "optim.betas": [0.5, 0.9]}
    with pytest.raises(UserError, match=r"^model\.dim=wide: must be"):
        with_values(cfg, {"model.dim": "wide"})
    with pytest.raises(UserError, match=r"^modl: unknown key; do you mean model=3$"):
        with_values(cfg, {"modl": 3})


RUN = ("model=nano", "data=text", "data.path=a.txt", "data.seq_len=32", "trainer.max_steps=50")


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        ((), {}),
        (RUN, {}),  # the same command again
        (("trainer.max_steps=800",), {"trainer.max_steps": 800}),  # the default, but named
        (("model=nano", "data.batch_size=4"), {"data.batch_size": 4}),
        (("data=text", "data.path=b.txt"), {"data.path": "b.txt"}),
        (("trainer=ddp", "trainer.devices=2"), {"trainer.devices": 2}),
        (("data.seq_len=16",), {"data.seq_len": 16, "model.max_seq_len": 16}),
        (("model=nano", "~callbacks.samples"), {}),
        (("optim=adamw",), {"optim.kind": "adamw", "optim.lr": 0.002}),
    ],
)
def test_overrides_change_what_they_name(
    overrides: tuple[str, ...], changed: dict[str, Any]
) -> None:
    own = {"run_dir": "x", "run_id": "y"}
    cfg = load_config(RUN, **own)
    found = with_overrides(cfg, overrides).model_copy(update=own | {"logger": cfg.logger})
    moved = differing(cfg, found)
    assert moved.items() >= changed.items()
    assert {key.partition(".")[0] for key in moved} == {key.partition(".")[0] for key in changed}


def test_another_corpus_keeps_what_it_is_told_to() -> None:
    keep = ("data.seq_len", "data.tokenizer")
    cfg = load_config([*RUN, "data/tokenizer=bytes"])
    found = with_overrides(cfg, ["data=stdlib"], keep=keep)
    assert found.data.kind == "stdlib"
    assert (found.data.seq_len, found.data.tokenizer.kind) == (32, "bytes")
    assert with_overrides(cfg, ["data=stdlib", "data.seq_len=8"], keep=keep).data.seq_len == 8


@pytest.mark.parametrize(
    "prompt", ["def f(x={1: 2}): ", " a=b=c ", "${oops}", "'quoted\"", "a\nb\t", "", "終 = 1", "-5"]
)
def test_a_prompt_is_taken_as_it_is(prompt: str) -> None:
    parsed = cli.parse_options(Options, ["ckpt=a folder/x=1", f"prompt={prompt}"])
    assert (parsed.ckpt, parsed.prompt) == ("a folder/x=1", (prompt,))


def test_home_is_known_in_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    words = ["data=text", "data.path=~/x", "data.val_path='~/it,s'", "data.cache_dir=~/c"]
    words += ["run_dir=~/r", "init_from=~/i"]
    cfg = load_config(words)
    paths = (cfg.data.path, cfg.data.val_path, cfg.data.cache_dir, cfg.run_dir, cfg.init_from)
    assert paths == tuple(f"/home/me/{name}" for name in ("x", "it,s", "c", "r", "i"))
    assert cfg.logger["csv"]["save_dir"] == "/home/me/r"
    asked = application.configured(["ckpt=~/c", "tasks=[~/q (1).jsonl,b]", "tasks_include=~/t"])
    assert (asked.ckpt, asked.tasks_include) == ("/home/me/c", "/home/me/t")
    assert asked.tasks == ("/home/me/q (1).jsonl", "b")
    assert cli.parse_options(Options, ["ckpt=~/c", "prompt=~"]).ckpt == "/home/me/c"


TEXTS = ("~/a", "a b", "a,b", "[a]", "{a: 1}", "a=b", "it's", '"a"', "$a", "${a}", "\\${a}", "")
ODD = (" a ", "1e3", "007", "true", "null", "a(1)", "終", "a\\", "'a'", "x\ny", "#a;b&c|d<e")


@pytest.mark.parametrize("text", [*TEXTS, *ODD])
def test_what_is_printed_to_be_typed_keeps_its_meaning(text: str) -> None:
    (word,) = shlex.split(typed("data.name", text))
    assert compose("train", ["data=hub", word])["data"]["name"] == text


def test_inside_an_application_of_hydra(tmp_path: Path) -> None:
    (tmp_path / "app.yaml").write_text("seed: 7")
    with initialize_config_dir(version_base="1.3", config_dir=str(tmp_path)):
        assert load_config(["model=nano"]).model.dim == 48
        assert hydra_compose("app").seed == 7
    assert not GlobalHydra.instance().is_initialized()


def test_a_sweep_runs_every_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=1,2", "model=nano"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    done: list[tuple[int, list[str]]] = []
    cli.main(
        lambda cfg, overrides: done.append((cfg.seed, overrides)),
        name="train",
        configured=load_config,
    )
    assert done == [(seed, [f"seed={seed}", "model=nano"]) for seed in (1, 2)]


def test_configuration_needs_neither_torch_nor_lightning(tmp_path: Path) -> None:
    heavy = "[m for m in ('torch', 'lightning', 'transformers', 'wandb') if m in sys.modules]"
    code = (
        "import sys, mla_lm, mla_lm.config, mla_lm.config.compose\n"
        f"print({heavy}, 'hydra' in sys.modules)\n"
        f"mla_lm.load_config(['model=nano'])\nprint({heavy})\n"
    )
    result = run("-c", code, cwd=tmp_path)
    assert result.stdout.splitlines() == ["[] False", "[]"], result.stderr
