"""Suite `decode` on a tiny model: every figure comes out of real work, equal results first."""

import json
from pathlib import Path

import pytest
import torch

from mla_lm.bench import decode, plot, speculation
from mla_lm.bench.report import Row
from mla_lm.commands import bench
from mla_lm.errors import UserError
from mla_lm.model.attention import MultiHeadLatentAttention
from tests.runs.conftest import short_run, train_here, write_corpus

VOCAB = 320
SMALL = (
    "model=nano",
    "data.seq_len=80",
    f"model.vocab_size={VOCAB}",
    "model.mtp_depth=0",
    "model.sizes.kv_lora_rank=24",
)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "MODEL": SMALL,
        "VOCAB": VOCAB,
        "PREFILL": 9,
        "ROUNDS": 1,
        "STEPS": 2,
    }.items():
        monkeypatch.setattr(decode, name, value)
    monkeypatch.setattr(plot, "CONTEXTS", (8, 16))
    monkeypatch.setattr(plot, "BATCHES", (1, 2))
    for name, value in {"N_PROMPTS": 4, "PROMPT": 5, "NEW_TOKENS": 6}.items():
        monkeypatch.setattr(speculation, name, value)
    decode.build.cache_clear()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs by depth of MTP."""
    place = tmp_path_factory.mktemp("bench")
    write_corpus(place / "text")
    runs = {depth: place / f"run-{depth}" for depth in (0, 1)}
    for depth, folder in runs.items():
        words = (*short_run(place), f"model.mtp_depth={depth}", "trainer.max_steps=2")
        train_here(*words, f"run_dir={folder}")
    return runs


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {row.name: row for row in rows}


def test_against_the_peer_and_between_own_kinds() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "GOALS", {8: 2.0})
        patch.setattr(decode, "versus", lambda *args, **kwargs: iter(()))
        rows = by_name(decode.run([8, 11]))
    assert all(row.value > 0 for row in rows.values())
    assert rows["decode behind 8: ratio"].goal == ">= 2"
    assert rows["decode behind 11: ratio"].goal == ""
    assert rows["prefill 9: ratio"].goal == ">= 1.5"
    assert sum("decode behind 8: transformers" in name for name in rows) == 1
    assert rows["cache, mla, bfloat16"].value == 2 * 2 * (24 + 8)


def test_own_kinds_are_compared_in_one_run() -> None:
    rows = list(decode.versus("mla / gqa", ("mla", None), ("gqa", None), 3, 16, goal=1.5))
    assert [row.name.split(": ")[0] for row in rows] == ["mla / gqa, batch 3 behind 16"] * 3
    one, other, ratio = rows
    assert ratio.value == pytest.approx(one.value / other.value)
    assert ratio.goal == ">= 1.5"


def test_unequal_sides_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = decode.build("mla", "float32")
    decode.write_peer(model, tmp_path)
    peer = decode.Peer(tmp_path, "float32", "eager")
    prompt = torch.randint(VOCAB, (1, 12))
    decode.assert_equal_choices(model, peer, prompt)
    with torch.no_grad():
        peer.model.lm_head.weight.copy_(peer.model.lm_head.weight.flip(0))
    with pytest.raises(AssertionError, match="other tokens"):
        decode.assert_equal_choices(model, peer, prompt)


def test_an_absorbed_side_that_differs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    decode.assert_absorbed_equals_reexpanded()
    honest = MultiHeadLatentAttention.absorbed
    monkeypatch.setattr(MultiHeadLatentAttention, "absorbed", lambda *args: 1.1 * honest(*args))
    with pytest.raises(AssertionError, match="not close"):
        decode.assert_absorbed_equals_reexpanded()


def test_speculation_of_a_checkpoint(folders: dict[int, Path]) -> None:
    rows = by_name(speculation.run(str(folders[1])))
    assert rows["speculation, greedy, float32: identical runs"].value == 1
    (name,) = (n for n in rows if n.startswith("speculation, greedy") and n.endswith("ratio"))
    what = name.removesuffix(": ratio")
    assert 1 <= rows[f"{what}: tokens a step"].value <= 2
    assert 0 <= rows[f"{what}: acceptance, depth 1"].value <= 1
    assert sum(n.startswith("speculation, temperature 1") for n in rows) == 5


def test_a_checkpoint_without_mtp_is_refused(folders: dict[int, Path]) -> None:
    with pytest.raises(UserError, match=r"has no MTP module .*mtp_depth=0"):
        speculation.run(str(folders[0]))


def test_where_runs_part_the_gap_is_told() -> None:
    model = decode.build("mla", "float32")
    prompt, plain = [1, 2, 3], [4, 5, 6]
    one = speculation.Comparison(plain, [4, 5, 7], (1.0, 1.0), speculation.Counts(1, 1, (1,), (1,)))
    share, gap = speculation.equality(model, [one], [prompt], "float32")
    assert share.value == 0
    best = model(torch.tensor([[1, 2, 3, 4, 5]])).logits[0, -1].topk(2).values
    assert gap.value == pytest.approx(float(best[0] - best[1]))


def test_the_command_writes_figures_and_plot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(decode, "run", lambda contexts: [Row("x", float(contexts[0]), "s")])
    picture, out = tmp_path / "plot.png", tmp_path / "figures.json"
    bench.run(["suite=decode", "contexts=7,8", f"plot={picture}", f"out={out}"])
    written = json.loads(out.read_text())
    assert written["rows"][0]["value"] == 7
    assert set(written["tokens/s"]["batch 2"]) == {"mla", "mha", "gqa", "mqa"}
    assert picture.read_bytes().startswith(b"\x89PNG")
