"""Study files: what is refused, which cells come of them, and that every file makes models."""

import re
from pathlib import Path

import pytest

from mla_lm.ablation.budget import axes
from mla_lm.ablation.study import FOLDER, Study, cells, load_study, plan, sweep_cells
from mla_lm.commands import ablate
from mla_lm.errors import UserError

NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def small(**changes: object) -> Study:
    return load_study("smoke", changes, ["model.mtp_depth=0"])


@pytest.mark.parametrize("name", NAMES)
def test_every_study_meets_its_budget(name: str) -> None:
    study = load_study(name, {}, [])
    configs = plan(study).configs
    assert len(configs) == len(study.arms) > 1
    for arm, cfg in configs.items():
        if study.match != "none":
            figure, expected = (
                getattr(axes(one), study.match) for one in (cfg, configs[study.reference])
            )
            assert figure == pytest.approx(expected, rel=0.01), arm


def test_cells_are_arms_with_a_seed_and_a_folder_seed_by_seed(tmp_path: Path) -> None:
    planned = plan(small())
    found = cells(planned.study, {})
    assert [c.name for c in found] == [f"{a}-s{s}" for s in (1, 2) for a in planned.configs]
    folder, arm = tmp_path / "it's", planned.configs["mha"]
    cfg = planned.cell_config(found[5], folder, "mine")
    assert (cfg.seed, cfg.resume, cfg.run_dir, cfg.run_id) == (2, "auto", str(folder), "mine")
    assert cfg.logger["csv"]["save_dir"] == str(folder)
    assert cfg.callbacks["samples"] is None
    assert cfg.model == arm.model
    assert cfg.model.mtp_depth == 0


def test_a_sweep_takes_the_first_seed_and_the_best_rate_the_others(tmp_path: Path) -> None:
    planned = plan(small(lr_grid="0.001,0.01", arms={"mla": [], "gqa": ["model/attention=gqa"]}))
    expected = ["mla-lr0.001-s1", "gqa-lr0.001-s1", "mla-lr0.01-s1", "gqa-lr0.01-s1"]
    assert [cell.name for cell in sweep_cells(planned.study)] == expected
    (cell,) = cells(planned.study, {"mla": 0.01})
    assert cell.name == "mla-lr0.01-s2"
    assert planned.cell_config(cell, tmp_path, None).optim.lr == 0.01


def test_the_worked_example_of_the_page_is_a_study(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    path = tmp_path / "rope_width.yaml"
    path.write_text(text)
    planned = plan(load_study(str(path), {}, []))
    assert [*planned.solved["rope_8"]] == ["model.ffn.moe_inter_dim"]
    assert [*planned.solved["rope_48"]] == ["model.inter_dim"]


def test_the_plan_is_shown_and_nothing_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ablate.run(["ablation=smoke", f"out={tmp_path / 'study'}", "plan=true"])
    stdout = capsys.readouterr().out
    assert all(name in stdout for name in ("mla", "gqa", "kv_bytes", "train_flops", "inter_dim="))
    assert not (tmp_path / "study").exists()


ARMS = "question: q, arms: {a: []}, reference: a"


@pytest.mark.parametrize(
    ("study", "command", "message"),
    [
        ("smokey", "", r"ablation=smokey: unknown choice; choose from .*smoke"),
        ("smoke", "seeds=1", r"seeds=\(1,\): must be at least 2 for a confidence"),
        ("smoke", "seeds=2,2", r"seeds=.*must be different"),
        ("smoke", "seeds=two", r"seeds.*=two: must be a valid integer"),
        ("smoke", "lr_grid=2e-3,0.002", r"lr_grid=.*must be different"),
        ("smoke", "confidence=2", r"confidence=2: must be less than 1"),
        ("smoke", "match=flops", r"match=flops: must be 'params'"),
        ("smoke", "match=kv_bytes", r"arm mha: .*kv_bytes.*does not change it"),
        ("smoke", "run_dir=x", r"run_dir: the study gives each cell its own"),
        ("smoke", "model.dimm=3", r"model.dimm: unknown key"),
        ("smoke", "logger=wandb", r"arm mla: logger: a study reads the files of logger=csv"),
        ("smoke", "", r"out: must be given"),
        ("", "", r"needs ablation=NAME out=DIR, or report=DIR"),
        ("", "report=nowhere", r"report=nowhere: no such folder"),
        ("", "report=. model=nano", r"takes no other options and no overrides"),
        ("arms: [", "", "no YAML"),
        ("- a", "", "must be a mapping"),
        ("{question: q, arms: {a: []}, reference: b}", "", "reference=b: must be one of"),
        ("{question: q, arms: {a/b: []}, reference: a/b}", "", "arms"),
        (f"{{{ARMS}, axis: x}}", "", "axis: unknown key"),
        (f"{{{ARMS}, base: [seed=3]}}", "", "seed: the study gives each cell its own"),
        (f"{{{ARMS}, base: model=nano}}", "", "base=model=nano"),
        ("{question: q, arms: {a: [model=tinny]}, reference: a}", "", "model=tinny"),
    ],
)
def test_mistakes_are_one_line(
    study: str, command: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if not re.fullmatch(r"\w*", study):
        Path("mine.yaml").write_text(study)
        study = "mine.yaml"
    words = [f"ablation={study}"] * bool(study) + command.split()
    with pytest.raises(UserError, match=message) as raised:
        ablate.run(words)
    assert "\n" not in str(raised.value)
