"""Every kind of model, interrupted at five places, ends bit for bit like an undisturbed run."""

import itertools
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from mla_lm.errors import STOPPED
from tests.reliability.child import tell_myself
from tests.reliability.record import record
from tests.reliability.runs import (
    Corpus,
    checkpoint,
    differences,
    resumed,
    run,
    short,
    state,
)

STEPS = 10


class Case(NamedTuple):
    attention: str
    ffn: str
    mtp_depth: int
    accumulate: int
    checkpointing: str

    @property
    def per_epoch(self) -> int:
        """Steps: of nine rows, two or three a step."""
        return 4 if self.accumulate == 1 else 3

    def words(self, corpus: Corpus) -> tuple[str, ...]:
        """With every step saved and kept, and every second validated."""
        return short(
            corpus,
            f"model/attention={self.attention}",
            f"model/ffn={self.ffn}",
            f"balance={'bias' if self.ffn == 'moe' else 'none'}",
            f"model.mtp_depth={self.mtp_depth}",
            f"trainer.accumulate_grad_batches={self.accumulate}",
            f"data.batch_size={2 if self.accumulate == 1 else 1}",
            f"trainer.activation_checkpointing={self.checkpointing}",
            f"trainer.max_steps={STEPS}",
            "trainer.val_every_n_steps=2",
            "checkpoint.every_n_steps=1",
            f"checkpoint.keep={STEPS}",
        )


CASES = list(
    itertools.starmap(
        Case,
        itertools.product(
            ("mla", "mha", "gqa"), ("dense", "moe"), (0, 1), (1, 3), ("none", "non_reentrant")
        ),
    )
)
SOME = [CASES[i] for i in (1, 14, 25, 38, 47)]  # of every attention kind, and every other choice


def interrupted(case: Case, words: tuple[str, ...], place: Path) -> Iterator[tuple[str, Path]]:
    """Each place, and the folder of a run that was interrupted there."""
    whole, epoch = place / "whole", case.per_epoch
    place.mkdir()
    log = whole.with_suffix(".log")
    assert run([*words, f"run_dir={whole}"], log) == 0, log.read_text()
    yield "undisturbed", whole
    yield "inside epoch 1", resumed(whole, 1, place / "one", words)
    yield "inside epoch 2", resumed(whole, epoch + 1, place / "two", words)
    yield "at the end of an epoch", resumed(whole, epoch, place / "end", words)
    yield "twice in a row", resumed(place / "one", epoch + 2, place / "twice", words)
    cut, change = place / "cut", partial(tell_myself, 15, "validation", 1)
    assert run([*words, f"run_dir={cut}"], cut.with_suffix(".log"), change) == STOPPED
    yield "inside a validation", resumed(cut, 2, place / "validated", words)


def failures(corpus: Corpus, place: Path, case: Case) -> list[str]:
    (_, whole), *others = interrupted(case, case.words(corpus), place)
    wanted = state(checkpoint(whole, STEPS))
    found = [(name, differences(state(checkpoint(f, STEPS)), wanted)) for name, f in others]
    shutil.rmtree(place)
    return [f"{case} {name}: {wrong}" if wrong else "" for name, wrong in found]


@pytest.mark.parametrize("cases", [SOME, pytest.param(CASES, marks=pytest.mark.slow)])
def test_every_interruption_is_without_a_trace(
    corpus: Corpus, tmp_path: Path, cases: list[Case]
) -> None:
    def trial(number: int) -> list[str]:
        return failures(corpus, tmp_path / str(number), cases[number])

    with ThreadPoolExecutor(2) as pool:
        found = list(itertools.chain.from_iterable(pool.map(trial, range(len(cases)))))
    if cases is CASES:
        record("resume matrix", found.count(""), len(found))
    assert [wrong for wrong in found if wrong] == []
