"""`python -m mla_lm info`, on DeepSeek-V3's published sizes too."""

import json
from pathlib import Path

import pytest

from mla_lm import load_config
from mla_lm.commands import info
from mla_lm.errors import UserError
from tests.processes import run

KINDS = {"mla", "mha", "gqa", "mqa"}


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    info.run(words)
    return capsys.readouterr().out


def test_deepseek_v3_has_its_published_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(shown(capsys, "model=deepseek_v3", "--json"))
    parameters, parts = found["parameters"], found["parameters"]["parts"].values()
    assert round(parameters["total"] / 1e9) == 671
    assert 37 <= parameters["active"] / 1e9 < 38
    assert round((parameters["mtp"] + 2 * 129280 * 7168) / 1e9) in (13, 14)  # with its ends
    assert found["kv_cache_bytes_per_token"]["mla"] == 2 * 61 * (512 + 64) == 70_272
    for count in ("total", "active"):
        assert sum(part[count] for part in parts) == parameters[count]
    assert found["training_bytes"]["weights"] == 4 * (parameters["total"] + parameters["mtp"])


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        ([], 1),
        (["trainer.devices=2"], 2),
        (["trainer=fsdp", "trainer.devices=2"], 1),
    ],
)
def test_memory_of_this_machine_is_shared_by_its_ranks(
    words: list[str], needed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = load_config(["model=small", *words])
    needed *= sum(info.training_bytes(cfg.model, cfg.optim.kind).values())
    for there, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(info, "cpu_memory", lambda there=there: there)
        found = {"needed_bytes": needed, "memory_bytes": there, "fits": fits}
        assert info.on_this_cpu(cfg) == found


def test_the_last_line_says_whether_this_machine_has_the_memory(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(info, "cpu_memory", lambda: 10**9)
    for words, line in (
        (["model=nano"], "Training on this machine's CPU needs "),
        (["model=small"], "Training on this machine's CPU does not fit: it needs "),
        (["model=small", "trainer.accelerator=gpu"], "Activations come on top"),
    ):
        assert shown(capsys, *words).splitlines()[-1].startswith(line)


def test_it_needs_neither_torch_nor_lightning(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom mla_lm.commands import info\ninfo.run(['model=deepseek_v3'])\n"
        "print([name for name in ('torch', 'lightning') if name in sys.modules])\n"
    )
    result = run("-c", code, cwd=tmp_path)
    assert result.stdout.splitlines()[-1] == "[]", result.stderr


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (["model.n_heads=3"], {"mla", "mha", "mqa"}),  # not a multiple of the heads of GQA
        (["model=nano", "++model.attention.kv_lora_rank=64"], KINDS),
        (["model=nano", "+model.attention={kv_lora_rank: 64}"], KINDS),
    ],
)
def test_kinds_that_the_overrides_do_not_fit_are_none(words: list[str], known: set[str]) -> None:
    cfg = load_config(words)
    found = info.kv_caches(cfg, words)
    assert {kind for kind, size in found.items() if size} == known
    assert found.keys() == KINDS
    elements = cfg.model.attention.kv_lora_rank + cfg.model.attention.qk_rope_head_dim
    assert found["mla"] == 2 * cfg.model.n_layers * elements


def test_only_the_chosen_kind_takes_its_own_keys() -> None:
    words = ["model=nano", "model/attention=gqa", "model.attention.head_dim=32"]
    plain, changed = (info.kv_caches(load_config(w), w) for w in (words[:2], words))
    assert changed == {**plain, "gqa": 2 * plain["gqa"]}


def test_tables_show_every_kind_at_every_context(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(capsys, "model.n_heads=3", "contexts=1000,2000")
    assert all(f" {kind} " in said for kind in KINDS)
    assert "2,000 tokens" in said
    (gqa,) = [line for line in said.splitlines() if " gqa " in line]
    assert gqa.replace("│", " ").split() == ["gqa", "-"]


def test_steps_are_measured_on_random_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(shown(capsys, "model=nano", "data.seq_len=32", "measure=true", "--json"))
    measured = found["measured"]
    speed = 16 * 32 / measured["step_seconds"]
    assert measured["tokens_per_second"] == pytest.approx(speed)
    assert 0 < measured["mfu"] < 1
    assert measured["peak_bytes"] > 10**8


@pytest.mark.parametrize("word", ["contexts=0", "contexts=many", "model.dimm=3"])
def test_mistakes_name_the_key(word: str) -> None:
    with pytest.raises(UserError, match=word.partition("=")[0]):
        info.run([word])
