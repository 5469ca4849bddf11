"""Suite `decode` with a tiny model: unequal sides are found, every figure is measured."""

from functools import partial
from pathlib import Path

import pytest
import torch

from mla_lm.bench import decode, peer, speculation
from mla_lm.errors import UserError
from mla_lm.model.attention import MultiHeadLatentAttention
from tests.runs.conftest import short_run, train_here, write_corpus

VOCAB = 320
SMALL = {
    "VOCAB": VOCAB,
    "MODEL": ("model=nano", "data.seq_len=80", f"model.vocab_size={VOCAB}", "model.mtp_depth=0"),
    "CONTEXTS": (8, 11),
    "PREFILL": 9,
    "COMPARED": (("absorbed", "materialised", 1, 16), ("mla", "gqa", 3, 16)),
    "ROUNDS": 1,
    "STEPS": 2,
}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(decode, name, value)
    for name, value in {"N_PROMPTS": 4, "PROMPT": 5, "NEW_TOKENS": 6}.items():
        monkeypatch.setattr(speculation, name, value)
    decode.build.cache_clear()


def test_every_figure_is_measured() -> None:
    rows = {row.name: row for row in decode.run()}
    assert len(rows) == 3 * (2 + 1 + 2)
    assert all(row.value > 0 for row in rows.values())
    one, other = (row for name, row in rows.items() if "gqa, batch 3" in name and row.unit != "x")
    ratio = rows["mla / gqa, batch 3 behind 16 tokens: ratio"]
    assert ratio.value == pytest.approx(one.value / other.value)


def test_a_peer_that_chooses_other_tokens_is_found(tmp_path: Path) -> None:
    model, prompt = decode.build("mla", "float32"), torch.randint(VOCAB, (1, 12))
    peer.write_peer(model, tmp_path)
    theirs = peer.load_peer(tmp_path, "eager").eval()
    sides = [partial(decode.greedy, model), partial(peer.greedy, theirs)]
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
    rows = {row.name: row for row in speculation.run(str(runs[1]))}
    assert len(rows) == 2 * (1 + 5 + 5)
    assert rows["speculation, greedy, float32: equal texts"].value == 1
    assert 1 <= rows["speculation, greedy, float32: tokens per step"].value <= 2
    assert 0 <= rows["speculation, temperature 1, float32: acceptance, depth 1"].value <= 1
    with pytest.raises(UserError, match=r"has no MTP module .*mtp_depth=0"):
        list(speculation.run(str(runs[0])))
