"""What a configuration costs, as `python -m mla_lm info` tells it."""

import json
import time

import pytest
import torch
from torch import Tensor

from mla_lm import Transformer, load_config
from mla_lm.bench import steps
from mla_lm.commands import info
from mla_lm.errors import UserError
from tests.test_cost import counted_parameters


def told(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    info.run([*words, "--json"])
    return json.loads(capsys.readouterr().out)


def test_deepseek_v3_is_counted_and_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "model=deepseek_v3")
    assert round(found["parameters"]["total"] / 1e9) == 671
    assert 37 <= found["parameters"]["active"] / 1e9 < 38
    assert found["cache"]["mla"] == 70_272
    assert found["seconds"] is None
    with torch.device("meta"):
        model = Transformer(load_config(["model=deepseek_v3"]).model)
    names = ("total", "active", "mtp", "mtp_active")
    assert counted_parameters(model) == tuple(found["parameters"][name] for name in names)


def test_parts_add_up_and_the_time_follows_from_the_speed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(info, "SECONDS", 0.1)
    found = told(capsys, "model=nano", "data.seq_len=32", "data.batch_size=2", "tokens=1e6")
    parts = found["parameters"]["parts"].values()
    assert sum(part["total"] for part in parts) == found["parameters"]["total"]
    assert sum(part["active"] for part in parts) == found["parameters"]["active"]
    assert found["tokens"] == 1_000_000
    assert found["seconds"] == pytest.approx(1e6 / found["tokens_per_second"])


def test_the_chosen_kind_keeps_its_own_keys(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(info, "SECONDS", 0.01)
    small = ("model=nano", "data.seq_len=16", "data.batch_size=1")
    plain = told(capsys, *small)["cache"]
    changed = told(capsys, *small, "model/attention=gqa", "model.attention.head_dim=32")["cache"]
    assert changed == {**plain, "gqa": 2 * plain["gqa"]}


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (["model.n_heads=3"], {"mla", "mha", "mqa"}),  # not a multiple of the heads of GQA
        (["model=nano", "model.sizes.head_dim=33"], {"mla"}),  # odd, as only MLA's values may be
        (["model=nano", "++model.attention.kv_lora_rank=64"], {"mla", "mha", "gqa", "mqa"}),
        (["model=nano", "+model.attention={kv_lora_rank: 64}"], {"mla", "mha", "gqa", "mqa"}),
    ],
)
def test_what_can_be_trained_is_told_though_other_kinds_are_not(
    words: list[str], known: set[str]
) -> None:
    cfg = load_config(words)
    found = info.caches(cfg, words)
    assert {kind for kind, size in found.items() if size} == known
    assert found.keys() == {"mla", "mha", "gqa", "mqa"}
    numbers = cfg.model.attention.kv_lora_rank + cfg.model.attention.qk_rope_head_dim
    assert found["mla"] == 2 * cfg.model.n_layers * numbers


def test_a_kind_that_does_not_go_with_it_is_a_dash(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(info, "SECONDS", 0.01)
    info.run(["model=nano", "model.sizes.head_dim=33", "data.seq_len=16", "data.batch_size=1"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " gqa " in line]
    assert line.split() == ["│", "gqa", *["│", "-", "│"], *["│"] * 3]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_of_several_processes_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    shapes = []

    def seconds(side: steps.Side, tokens: Tensor, number_format: str) -> float:
        shapes.append(tuple(tokens.shape))
        return 0.001

    monkeypatch.setattr(steps, "seconds", seconds)
    monkeypatch.setattr(info, "SECONDS", 0.03)
    words = ("model=nano", "data.seq_len=16", "data.batch_size=6", f"trainer={strategy}")
    found = told(capsys, *words, "trainer.devices=2", "trainer.accumulate_grad_batches=3")
    assert shapes[-1] == (3, 17)
    assert found["processes"] == 2
    assert found["tokens_per_second"] == 2 * 3 * 16 / 0.001
    assert found["tokens"] == 800 * 3 * 6 * 16  # of all processes
    estimated, alone = sum(found["training_bytes"].values()), found["measuring_bytes"]
    assert estimated == alone if strategy == "ddp" else estimated < alone
    info.run([*words, "trainer.devices=2"])
    said = capsys.readouterr().out
    assert "one of 2 processes" in said
    assert "one process measured, times 2" in " ".join(said.split())


def test_rows_that_do_not_divide_are_refused_as_by_training() -> None:
    with pytest.raises(UserError, match=r"data.batch_size=6: must be a multiple of the 4 proc"):
        info.run(["model=nano", "data.batch_size=6", "trainer.devices=4"])


def test_the_first_step_of_a_shape_is_not_timed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It compiles, where `trainer.compile` asks for that."""
    shapes = set()

    def seconds(side: steps.Side, tokens: Tensor, number_format: str) -> float:
        time.sleep(info.SECONDS)
        first = tokens.shape not in shapes
        shapes.add(tokens.shape)
        return 1000.0 if first else 0.001

    monkeypatch.setattr(steps, "seconds", seconds)
    monkeypatch.setattr(info, "SECONDS", 0.02)
    found = told(capsys, "model=nano", "data.seq_len=16", "data.batch_size=4")
    assert found["tokens_per_second"] == 4 * 16 / 0.001


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999_400, "999 kB"),
        (999_600, "1 MB"),
        (1_234_567, "1.23 MB"),
        (999.6e12, "1,000 TB"),
    ],
)
def test_sizes_have_three_digits(size: float, said: str) -> None:
    assert info._bytes(size) == said


def test_tables_show_the_kinds_side_by_side(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(info, "SECONDS", 0.01)
    info.run(["model=nano", "data.seq_len=16", "data.batch_size=1"])
    said = capsys.readouterr().out
    assert all(f" {kind} " in said for kind in ("mla", "mha", "gqa", "mqa"))
    assert "all, estimated" in said
    assert "on this machine" in said


@pytest.mark.parametrize("word", ["tokens=many", "tokens=-3", "tokens=nan", "model.dimm=3"])
def test_a_mistake_is_one_line_that_names_it(word: str) -> None:
    with pytest.raises(UserError) as caught:
        info.run([word])
    assert word.partition("=")[0] in str(caught.value)
