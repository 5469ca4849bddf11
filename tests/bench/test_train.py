"""Suite `train` with a tiny model: every figure comes out, and steps that differ stop it."""

from pathlib import Path

import pytest
import torch

from mla_lm.bench import lightning_step, steps, train
from mla_lm.bench.peer import write_peer
from mla_lm.bench.worker import Worker
from tests.conftest import TINY

WORDS = (*TINY, "data.batch_size=2", "model.mtp_depth=0", "optim=adamw")


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightning_step, "ROUNDS", 1)
    monkeypatch.setattr(lightning_step, "STEPS", 3)


def test_sides_are_equal_and_a_difference_is_found(tmp_path: Path) -> None:
    cfg = train.load_config(WORDS)
    mine = steps.ours(cfg)
    write_peer(mine.model, tmp_path)  # type: ignore[arg-type]
    theirs = steps.peer(tmp_path, "eager")
    tokens = torch.randint(cfg.model.vocab_size, (2, 33))
    steps.assert_equal(mine, theirs, tokens)
    with torch.no_grad():
        theirs.model.lm_head.weight *= 1.01  # type: ignore[union-attr,operator]
    with pytest.raises(AssertionError, match="differ"):
        steps.assert_equal(mine, theirs, tokens)


@pytest.mark.parametrize("number_format", ["float32", "bfloat16"])
def test_a_step_learns_and_moves_the_biases(number_format: str) -> None:
    cfg = train.load_config([*WORDS, "model.mtp_depth=1"])
    side = steps.ours(cfg)
    tokens = torch.randint(cfg.model.vocab_size, (2, 33))
    losses = [side.step(tokens, steps.autocast(number_format)) for _ in range(6)]
    assert losses[-1] < losses[0]
    biases = [r.e_score_correction_bias for r in side.model.routers().values()]  # type: ignore[operator,union-attr]
    assert all(bias.any() for bias in biases)


def numbers() -> "Counter":
    return Counter()


class Counter:
    """Counts its calls, in whatever process it lives."""

    n = 0

    def __call__(self) -> int:
        self.n += 1
        self.block = bytearray(50 * 2**20)
        return self.n


def test_a_worker_is_a_process_of_its_own() -> None:
    with Worker(numbers) as one, Worker(numbers) as other:
        assert [one(), one(), other(), one()] == [1, 2, 1, 3]
        assert one.peak() > 40 * 2**20


def test_what_lightning_adds_comes_out() -> None:
    bare, ratio = lightning_step.overhead()
    assert (bare.unit, ratio.goal) == ("ms", "<= 1.05")
    assert bare.value > 0
    assert ratio.value > 0


@pytest.mark.slow
def test_every_figure_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "ROUNDS", 1)
    rows = {row.name: row for row in train.run()}
    assert len(rows) == 2 * 7 + 3 * 3 + 2
    assert rows["training, bfloat16: ours / transformers"].goal == ">= 2.5"
    assert all(row.value > 0 for row in rows.values())
