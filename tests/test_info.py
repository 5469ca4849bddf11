"""What a configuration costs, as `python -m mla_lm info` tells it."""

import json

import pytest
import torch

from mla_lm import Transformer, load_config
from mla_lm.commands import info
from mla_lm.errors import UserError
from tests.test_accounting import counted_parameters


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
