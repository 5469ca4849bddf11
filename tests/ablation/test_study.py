"""Study files: what is refused, which cells come of them, and that every file makes models."""

from pathlib import Path

import pytest

from mla_lm.ablation.budget import AXES
from mla_lm.ablation.study import FOLDER, Study, cells, load_study, plan, sweep_cells
from mla_lm.commands import ablate
from mla_lm.errors import UserError

NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def small(**changes: object) -> Study:
    return load_study("smoke", changes, ["model.mtp_depth=0"])


@pytest.mark.parametrize("name", NAMES)
def test_every_study_meets_its_budget(name: str) -> None:
    study = load_study(name, {}, [])
    planned = plan(study)
    reference = dict(planned.axes(study.reference))
    for arm in study.arms:
        figures = dict(planned.axes(arm))
        assert figures.keys() == AXES.keys()
        if study.match != "none":
            assert figures[study.match] == pytest.approx(reference[study.match], rel=0.01), arm
    assert len(planned.configs) == len(study.arms) > 1


def test_words_of_the_command_reach_every_cell() -> None:
    study = small()
    assert all("model.mtp_depth=0" in cell.words for cell in cells(study, plan(study), {}))


def test_seeds_come_one_after_the_other_so_that_arms_stay_comparable() -> None:
    study = small()
    found = [cell.name for cell in cells(study, plan(study), {})]
    assert found == [f"{arm}-s{seed}" for seed in (1, 2) for arm in ("mla", "mha", "gqa", "mqa")]


def test_a_sweep_takes_the_first_seed_and_the_best_rate_the_others() -> None:
    study = small(lr_grid=(0.001, 0.01), arms={"mla": [], "gqa": ["model/attention=gqa"]})
    planned = plan(study)
    sweep = sweep_cells(study, planned)
    expected = ["mla-lr0.001-s1", "gqa-lr0.001-s1", "mla-lr0.01-s1", "gqa-lr0.01-s1"]
    assert [cell.name for cell in sweep] == expected
    rest = cells(study, planned, {"mla": 0.01})
    assert [cell.name for cell in rest] == ["mla-lr0.01-s2"]
    assert rest[0].words[-1] == "optim.lr=0.01"


def test_arms_are_known_by_what_decides_their_results() -> None:
    one, same, other = (plan(small(**c)).digests() for c in ({}, {}, {"match": "none"}))
    assert one == same
    assert one["mla"] == other["mla"]
    assert one != other


def test_rates_of_a_file_may_be_written_as_yaml_does(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("{question: q, arms: {a: []}, reference: a, lr_grid: [2e-3, 1]}")
    assert load_study(str(path), {}, []).lr_grid == (0.002, 1.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ablation=smokey"], r"ablation=smokey: unknown choice; choose from .*smoke"),
        (["ablation=smoke", "seeds=1"], r"seeds=\(1,\): must be at least 2 for a confidence"),
        (["ablation=smoke", "seeds=2,2"], r"seeds=.*must be different"),
        (["ablation=smoke", "match=flops"], r"match=flops: must be 'params'"),
        (["ablation=smoke", "match=kv_bytes"], r"arm mha: .*kv_bytes.*does not move"),
        (["ablation=smoke", "run_dir=x"], r"run_dir: the study gives each cell its own"),
        (["ablation=smoke", "model.dimm=3"], r"model.dimm: unknown key"),
        (["ablation=smoke"], r"out: must be given"),
        ([], r"needs ablation=NAME out=DIR, or report=DIR"),
        (["report=nowhere"], r"report=nowhere: no such folder"),
        (["report=.", "model=nano"], r"takes no other options and no overrides"),
        (["report=.", "seeds=1,2"], r"takes no other options and no overrides"),
        (["ablation=smoke", "lr_grid=2e-3,0.002"], r"lr_grid=.*must be different"),
        (["ablation=smoke", "trainer.max_steps=50"], r"arm mla: .*val_every_n_steps=20: must div"),
        (["ablation=smoke", "logger=wandb"], r"arm mla: logger=.*reads the files of logger=csv"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as raised:
        ablate.run(words)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arms: [", "no YAML"),
        ("- a", "must be a mapping"),
        ("{question: q, base: [], arms: {a: []}, reference: b}", "reference=b: must be one of"),
        ("{question: q, base: [], arms: {a/b: []}, reference: a/b}", "arms"),
        ("{question: q, base: [], arms: {}, reference: a}", "arms"),
        ("{question: q, base: [], arms: {a: []}, reference: a, axis: x}", "axis: unknown key"),
        ("{question: q, base: [], arms: {a: [model=tinny]}, reference: a}", "model=tinny"),
        ("{question: q, base: [seed=3], arms: {a: []}, reference: a}", "must leave run_dir"),
        ("{question: q, base: [], arms: {a: [run_dir=x]}, reference: a}", "must leave run_dir"),
        ("{question: q, base: model=nano, arms: {a: []}, reference: a}", "base=model=nano"),
    ],
)
def test_files_that_are_no_studies_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        plan(load_study(str(path), {}, []))


def test_an_arm_that_is_no_model_is_named() -> None:
    with pytest.raises(UserError, match=r"arm b: model.n_heads=4: must be divisible"):
        plan(small(arms={"mla": [], "b": ["model/attention=gqa", "model.sizes.n_kv_heads=5"]}))
