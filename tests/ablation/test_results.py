"""Runs as they are read from their folders, and the names of arms."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mla_lm.ablation.results import arm_names, configuration, read_run, runs_below
from mla_lm.cost import train_flops_per_token
from mla_lm.errors import UserError
from tests.ablation.folders import PER_STEP, config, row, usual, write_run


def read(folder: Path) -> Any:
    return read_run(folder, arm="arm", name="name")


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(folder)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_curve_counts_tokens_flops_and_seconds(tmp_path: Path) -> None:
    rows = [
        row(10, speed=256.0),
        row(20, speed=512.0),
        row(20, loss=3.0, bpb=1.5),
        row(40, loss=2.0, bpb=1.25),
    ]
    run = read(write_run(tmp_path / "run", [rows]))
    flops = train_flops_per_token(config().model, 64)
    assert [point.step for point in run.curve] == [20, 40]
    assert [point.tokens for point in run.curve] == [20 * PER_STEP, 40 * PER_STEP]
    assert [point.flops for point in run.curve] == [20 * PER_STEP * flops, 40 * PER_STEP * flops]
    assert [point.seconds for point in run.curve] == [10 * 1 + 10 * 0.5, 15 + 20 * 0.5]
    assert run.tokens_per_second == 384.0
    assert (run.val_loss, run.val_bpb, run.finished) == (2.0, 1.25, True)


def test_without_speeds_there_are_no_seconds(tmp_path: Path) -> None:
    run = read(write_run(tmp_path / "run", [[row(40, loss=2.0, bpb=1.0)]]))
    assert math.isnan(run.last.seconds)
    assert run.tokens_per_second is None


def test_later_start_wins(tmp_path: Path) -> None:
    first = [row(10, speed=1.0), row(20, loss=9.0, bpb=9.0, speed=1.0)]
    second = [row(20, loss=3.0, bpb=2.0), row(40, loss=2.0, bpb=1.0)]
    folder = write_run(tmp_path / "run", [first, *[[]] * 9, second])
    assert (folder / "metrics" / "version_10").is_dir()
    assert [point.metrics["val/bpb"] for point in read(folder).curve] == [2.0, 1.0]


def test_line_cut_short_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [[row(20, loss=3.0), row(40, loss=2.75)]])
    path = folder / "metrics" / "version_0" / "metrics.csv"
    path.write_text(path.read_text()[:-3])  # 2.75 would be read as 2.
    assert read(folder).status == "step 20 of 40"


@pytest.mark.parametrize(
    ("rows", "status"),
    [
        ([], "step 0 of 40"),
        ([row(20, loss=3.0, bpb=1.5)], "step 20 of 40"),
        ([row(40, loss=math.nan, bpb=math.nan)], "diverged"),
        ([row(40, loss=2.0, bpb=1.0)], "finished"),
    ],
)
def test_status(tmp_path: Path, rows: list[dict[str, float]], status: str) -> None:
    run = read(write_run(tmp_path / "run", [rows]))
    assert run.status == status
    assert run.finished == (status == "finished")


def test_experts_are_those_of_the_last_logged_step(tmp_path: Path) -> None:
    run = read(write_run(tmp_path / "run", [usual(1.0)]))
    assert run.experts == {"moe/max_violation": 0.1, "moe/layer_1/max_violation": 0.125}
    assert run.violation == ((10, 0.4), (20, 0.2), (30, 4 / 30), (40, 0.1))


def test_costs(tmp_path: Path) -> None:
    speeds = {
        "val/bpb": 1.0,
        "decode/64/1": 9.5,
        "prefill/64/8": 99.0,
        "cache/bytes_per_token": 4.0,
    }
    run = read(write_run(tmp_path / "run", [usual(1.0)], speeds=speeds, peak_memory=12345))
    assert run.speeds == {"decode/64/1": 9.5, "prefill/64/8": 99.0}
    assert run.peak_memory == 12345
    assert run.environment["device"] == "made by hand"
    assert run.axes["kv_bytes"] == 2 * 2 * (20 + 8)  # bfloat16, layers, latent + rotated key


def test_older_configuration_is_completed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [usual(1.0)])
    stored = json.loads((folder / "config.json").read_text())
    del stored["trainer"]["compile"], stored["init_from"]
    (folder / "config.json").write_text(json.dumps(stored))
    assert read(folder).finished


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    assert "lacks a config.json" in refusal(tmp_path)
    folder = write_run(tmp_path / "run", [usual(1.0)])
    whole = (folder / "config.json").read_text()
    (folder / "config.json").write_text(whole[:100])
    assert "config.json: no JSON" in refusal(folder)
    (folder / "config.json").write_text(whole.replace('"dim"', '"width"'))
    assert "does not fit this version" in refusal(folder)
    (folder / "config.json").write_text(whole)
    (folder / "metrics" / "version_0" / "metrics.csv").write_text("step,val/loss\n1,many\n")
    assert "metrics.csv: not the metrics" in refusal(folder)


def test_runs_below_finds_sweeps_and_only_runs(tmp_path: Path) -> None:
    for index, kind in enumerate(("mla", "gqa")):
        for seed in (1, 2):
            words = (f"model/attention={kind}", f"data.cache_dir=cache{index}")
            folder = tmp_path / "sweep" / str(2 * index + seed)
            write_run(folder, [usual(1.0)], words=words, seed=seed)
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "config.json").write_text('{"model_type": "deepseek_v3"}')
    runs = runs_below(tmp_path)
    assert [run.name for run in runs] == ["sweep/1", "sweep/2", "sweep/3", "sweep/4"]
    assert [(run.arm, run.seed) for run in runs] == [("mla", 1), ("mla", 2), ("gqa", 1), ("gqa", 2)]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ((("seed=1",), ("seed=2",)), ["mla", "mla"]),
        ((("optim.lr=0.004",), ("optim.lr=0.01",)), ["optim.lr=0.004", "optim.lr=0.01"]),
        (
            ((), ("model/ffn=dense", "balance=none"), ("model/attention=gqa",)),
            ["mla moe", "mla dense", "gqa moe"],
        ),
        (
            ((), ("model.attention.kv_lora_rank=12",), ("model/attention=mqa",)),
            ["mla model.attention.kv_lora_rank=20", "mla model.attention.kv_lora_rank=12", "mqa"],
        ),
        (  # a solved width needs no name where the kinds tell the arms apart
            ((), ("model/attention=mha", "model.inter_dim=48")),
            ["mla", "mha"],
        ),
        (
            ((), ("balance=none",)),
            ["balance.bias_update_speed=0.01", "balance.bias_update_speed=0.0"],
        ),
    ],
)
def test_arms_have_the_shortest_clear_names(
    words: tuple[tuple[str, ...], ...], names: list[str]
) -> None:
    assert arm_names([configuration(config(*arm)) for arm in words]) == names
