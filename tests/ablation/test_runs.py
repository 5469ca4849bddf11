"""Runs as they are read from their folders, and the names of arms."""

import math
from pathlib import Path

import pytest

from mla_lm.ablation.runs import read_runs, runs_below
from mla_lm.cost import train_flops_per_token
from mla_lm.errors import UserError
from tests.ablation.folders import GQA, PER_STEP, config, read, row, write_run


def test_a_curve_counts_tokens_flops_and_seconds(tmp_path: Path) -> None:
    rows = [
        row(10, speed=256.0, violation=0.5),
        row(20, speed=512.0),
        row(20, loss=3.0, bpb=1.5),
        row(40, loss=2.0, bpb=1.25, match=0.5),
    ]
    runs = read(write_run(tmp_path / "a-s1", rows, costs={"peak_memory": 7, "decode/64/1": 9.5}))
    curve = runs.curves[runs.curves.validated]
    flops = train_flops_per_token(config().model, 64)
    assert [*curve.step] == [20, 40]
    assert [*curve.tokens] == [20 * PER_STEP, 40 * PER_STEP]
    assert [*curve.flops] == [20 * PER_STEP * flops, 40 * PER_STEP * flops]
    assert [*curve.seconds] == [10 * 1 + 10 * 0.5, 15 + 20 * 0.5]
    assert runs.curves["moe/max_violation"].dropna().to_list() == [0.5]
    run = runs.table.iloc[0]
    assert (run.status, run.steps, run.tokens) == ("finished", 40, 40 * PER_STEP)
    assert (run["val/loss"], run["val/bpb"], run["val/exact_match"]) == (2.0, 1.25, 0.5)
    assert (run.tokens_per_second, run.step_seconds, run.training_seconds) == (384, 2 / 3, 25)
    assert (run.peak_memory, run["decode/64/1"]) == (7, 9.5)
    assert run.kv_bytes == 2 * 2 * (20 + 8)  # bfloat16, layers, latent + rotated key


def test_the_later_start_wins_and_speeds_may_be_missing(tmp_path: Path) -> None:
    first = [row(10, violation=1.0), row(20, loss=9.0, bpb=9.0)]
    second = [row(20, loss=3.0, bpb=2.0), row(40, loss=2.0, bpb=1.0)]
    runs = read(write_run(tmp_path / "a-s1", first, *[[]] * 9, second))
    assert runs.curves["val/bpb"].dropna().to_list() == [2.0, 1.0]
    assert math.isnan(runs.table.tokens_per_second[0])
    assert math.isnan(runs.table.training_seconds[0])


@pytest.mark.parametrize(
    ("later", "status", "bpb"),
    [
        ([row(25, speed=1.0)], "step 20 of 40", [1.0]),
        ([row(25, speed=1.0), row(30, loss=5.0, bpb=4.0)], "step 30 of 40", [1.0, 4.0]),
        ([], "finished", [1.0, 2.0, 3.0]),
    ],
)
def test_results_beyond_a_rollback_are_not_those_of_the_weights(
    tmp_path: Path, later: list[dict[str, float]], status: str, bpb: list[float]
) -> None:
    """Nor are those beyond the end of a run made shorter, and those that `eval.py` logged."""
    steps = (20, 30, 40, 60)
    first = [row(step, loss=9.0, bpb=float(i)) for i, step in enumerate(steps, start=1)]
    evaluated = row(10, loss=7.0, bpb=7.0)
    del evaluated["epoch"]
    runs = read(write_run(tmp_path / "a-s1", first, later, [evaluated]))
    assert runs.table.status[0] == status
    assert runs.curves["val/bpb"].dropna().to_list() == bpb


@pytest.mark.parametrize(
    ("rows", "cut", "status"),
    [
        ([], 0, "step 0 of 40"),
        ([row(20, loss=3.0, bpb=1.5)], 0, "step 20 of 40"),
        ([row(20, loss=3.0), row(40, loss=2.75)], 3, "step 20 of 40"),  # 2.75 would be read as 2.
        ([row(40, loss=math.nan, bpb=math.nan)], 0, "diverged"),
        ([row(40, loss=2.0, bpb=1.0)], 0, "finished"),
    ],
)
def test_status(tmp_path: Path, rows: list[dict[str, float]], cut: int, status: str) -> None:
    folder = write_run(tmp_path / "a-s1", rows)
    path = folder / "metrics" / "version_0" / "metrics.csv"
    path.write_text(path.read_text()[: -cut or None])
    run = read(folder).table.iloc[0]
    assert run.status == status
    assert math.isfinite(run["val/loss"]) == (status == "finished")


def test_a_damaged_run_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a-s1")
    whole = (folder / "config.json").read_text()
    for text, message in (
        (whole[:100], "config.json: cannot be read"),
        (whole.replace('"dim"', '"width"'), "does not fit this version"),
    ):
        (folder / "config.json").write_text(text)
        with pytest.raises(UserError, match=message):
            read(folder)
    (folder / "config.json").write_text(whole)
    (folder / "metrics" / "version_0").mkdir(parents=True)
    for text in ("step,val/bpb\n0,no number\n", "val/bpb\n1.5\n"):
        (folder / "metrics" / "version_0" / "metrics.csv").write_text(text)
        with pytest.raises(UserError, match="not the metrics of a run"):
            read(folder)


def test_runs_below_finds_sweeps_and_only_runs(tmp_path: Path) -> None:
    for kind in ("mla", "gqa"):
        for seed in (1, 2):
            overrides = (f"model/attention={kind}", f"data.cache_dir=cache{seed}")
            write_run(tmp_path / "sweep" / f"{kind}{seed}", overrides=overrides, seed=seed)
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "config.json").write_text('{"model_type": "deepseek_v3"}')
    found = runs_below(tmp_path)
    assert [*found] == ["sweep/gqa1", "sweep/gqa2", "sweep/mla1", "sweep/mla2"]
    runs = read_runs(found)
    assert runs
    expected = [("gqa", 1), ("gqa", 2), ("mla", 1), ("mla", 2)]
    assert [*zip(runs.table.arm, runs.table.seed, strict=True)] == expected


@pytest.mark.parametrize(
    "names",
    [
        {"mla optim.lr=0.004": ("optim.lr=0.004",), "mla optim.lr=0.01": ("optim.lr=0.01",)},
        {"mla moe": (), "mla dense": ("model/ffn=dense", "balance=none"), "gqa moe": (GQA,)},
        # a solved width needs no name where the kinds tell the arms apart
        {"mla": (), "mha": ("model/attention=mha", "model.inter_dim=48")},
        {
            "mla model.attention.kv_lora_rank=20": (),
            "mla model.attention.kv_lora_rank=12": ("model.attention.kv_lora_rank=12",),
            "mqa": ("model/attention=mqa",),
        },
    ],
)
def test_arms_have_short_clear_names(names: dict[str, tuple[str, ...]], tmp_path: Path) -> None:
    arms = [*names.values()]
    runs = read_runs(
        {str(i): write_run(tmp_path / str(i), overrides=arm) for i, arm in enumerate(arms)}
    )
    assert runs
    assert [*runs.table.sort_values("run").arm] == [*names]
