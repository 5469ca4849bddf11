"""The suites with tiny models: unequal sides are found, every figure is measured."""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from mla_lm import load_config
from mla_lm.bench import decode, quality, steps, train
from mla_lm.bench.report import Row
from mla_lm.errors import UserError
from mla_lm.machine import Resolved
from mla_lm.model.attention import MultiHeadLatentAttention
from tests.conftest import TINY
from tests.runs.conftest import short_run, train_here, write_corpus

VOCAB = 320
DECODE = {
    "VOCAB": VOCAB,
    "MODEL": ("model=nano", "data.seq_len=80", f"model.vocab_size={VOCAB}", "model.mtp_depth=0"),
    "CONTEXTS": (8, 11),
    "PREFILL": 9,
    "COMPARED": (("absorbed", "materialised", 1, 16), ("mla", "gqa", 3, 16)),
    "ROUNDS": 1,
    "STEPS": 2,
    "N_PROMPTS": 4,
    "PROMPT": 5,
    "NEW_TOKENS": 6,
}
WIDE = ("model.dim=32", "model.sizes.moe_inter_dim=32")  # as grouped_mm wants them
STEP = (*TINY, *WIDE, "data.batch_size=2", "model.mtp_depth=0", "optim=adamw")
TRAIN = {"ROUNDS": 1, "WARM_UP": 1, "MODEL": STEP, "PRECISIONS": ("32-true",)}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for suite, values in ((decode, DECODE), (train, TRAIN)):
        for name, value in values.items():
            monkeypatch.setattr(suite, name, value)
    decode.build.cache_clear()


def by_name(rows: list[Row]) -> dict[str, Row]:
    assert all(row.value > 0 for row in rows)
    return {row.name: row for row in rows}


def test_every_figure_of_suite_decode_is_measured() -> None:
    rows = by_name(decode.run())
    assert len(rows) == 3 * (2 + 1 + 2)
    one, other = (row for name, row in rows.items() if "gqa, batch 3" in name and row.unit != "x")
    ratio = rows["mla / gqa, batch 3 behind 16 tokens: ratio"]
    assert ratio.value == pytest.approx(one.value / other.value)


def test_a_peer_that_chooses_other_tokens_is_found(tmp_path: Path) -> None:
    model, prompt = decode.build("mla", "float32"), torch.randint(VOCAB, (1, 12))
    steps.write_peer(model, tmp_path)
    theirs = steps.load_peer(tmp_path, "eager").eval()
    sides = [partial(decode.greedy, model), partial(steps.greedy, theirs)]
    decode.assert_equal_choices(*sides, prompt)
    with torch.no_grad():
        theirs.lm_head.weight.copy_(theirs.lm_head.weight.flip(0))
    with pytest.raises(AssertionError, match="other tokens"):
        decode.assert_equal_choices(*sides, prompt)


def test_an_absorbed_side_that_differs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    decode.assert_absorbed_equals_materialised()
    honest = MultiHeadLatentAttention.absorbed
    monkeypatch.setattr(MultiHeadLatentAttention, "absorbed", lambda *args: 1.1 * honest(*args))
    with pytest.raises(AssertionError, match="not close"):
        decode.assert_absorbed_equals_materialised()


def test_drafts_of_a_checkpoint(tmp_path: Path) -> None:
    write_corpus(tmp_path / "text")
    runs = {depth: tmp_path / f"run-{depth}" for depth in (0, 1)}
    for depth, folder in runs.items():
        limits = (f"model.mtp_depth={depth}", "trainer.max_steps=2")
        train_here(*short_run(tmp_path), *limits, f"run_dir={folder}")
    rows = {row.name: row for row in decode.drafts(str(runs[1]))}
    assert len(rows) == 2 * (1 + 5 + 5)
    assert rows["speculation, greedy, float32: equal texts"].value == 1
    assert 1 <= rows["speculation, greedy, float32: tokens per step"].value <= 2
    assert 0 <= rows["speculation, temperature 1, float32: acceptance, depth 1"].value <= 1
    with pytest.raises(UserError, match=r"has no MTP module .*mtp_depth=0"):
        list(decode.drafts(str(runs[0])))


def test_a_step_that_differs_is_found(tmp_path: Path) -> None:
    cfg = load_config(STEP)
    steps.write_equal_peer(cfg, tmp_path)
    theirs = steps.peer(tmp_path, "eager")
    with torch.no_grad():
        theirs.model.get_parameter("lm_head.weight").mul_(1.01)
    with pytest.raises(AssertionError, match="not close"):
        steps.assert_equal(steps.ours(cfg), theirs, steps.batch(cfg))


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_a_step_learns_and_moves_the_biases(precision: Resolved) -> None:
    cfg = load_config([*STEP, "model.mtp_depth=1"])
    side = steps.ours(cfg)
    losses = [side.step(steps.batch(cfg), precision) for _ in range(6)]
    assert losses[-1] < losses[0]
    biases = [b for name, b in side.model.named_buffers() if name.endswith("correction_bias")]
    assert biases
    assert all(bias.any() for bias in biases)


@pytest.mark.slow
def test_every_figure_of_suite_train_is_measured() -> None:
    rows = by_name(train.run())
    assert len(rows) == 5 + 3 * 3
    assert all(row.peak_mib > 0 for row in rows.values() if row.unit == "tokens/s")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_every_figure_of_suite_gpu_is_measured() -> None:
    rows = by_name(train.run_gpu(STEP, "cpu"))
    assert len(rows) == 4 + 2 + 1
    ours, theirs = rows["ours, compiled"], rows["transformers, compiled"]
    ratio = rows["ours, compiled / transformers, compiled"]
    assert ratio.value == pytest.approx(ours.value / theirs.value)


def test_the_peer_of_quality_is_gpt2_in_the_sizes_asked_for() -> None:
    model = quality.gpt2({"n_embd": 24, "n_layer": 2, "n_head": 3}, vocab_size=50, seq_len=12)
    per_block = 12 * 24 * 24 + 13 * 24  # with biases
    assert sum(p.numel() for p in model.parameters()) == (50 + 12) * 24 + 2 * per_block + 2 * 24


@pytest.mark.slow
def test_both_sides_train_for_their_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quality, "N_STEPS", 150)
    write_corpus(tmp_path / "text")
    files = sorted((tmp_path / "text").iterdir())
    Path("text.txt").write_text("\n\n".join(file.read_text() for file in files) * 20)
    for text, sides in (
        ("text.txt", ("nanoGPT's CPU recipe", "ours, a third of its time")),
        (None, ("five_minutes", "GPT-2")),
    ):
        rows = by_name(quality.run(0.1, text))
        for side in sides:
            assert rows[f"{side}: validation"].value < 8
            assert rows[f"{side}: training"].value < 0.5
