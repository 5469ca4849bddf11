"""Every kind of model, interrupted at five places, ends bit for bit like an undisturbed run.

And where one thing is left out when it is restored, it does not.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, product, starmap
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mla_lm.data.loader import TrainLoader
from mla_lm.errors import STOPPED
from mla_lm.training.checkpoints import Checkpoints
from mla_lm.training.exact_resume import ExactResume
from mla_lm.training.module import LanguageModel
from tests.reliability.child import tell_myself
from tests.reliability.conftest import Reference, undisturbed
from tests.reliability.record import record
from tests.reliability.runs import (
    STEPS,
    checkpoint,
    differences,
    resume_at,
    resumed,
    run,
    short,
    state,
    steps,
)

EVERY_STEP = ("checkpoint.every_n_steps=1", f"checkpoint.keep={STEPS}")


class Case(NamedTuple):
    attention: str
    ffn: str
    mtp_depth: int
    accumulate: int
    checkpointing: str

    def words(self, corpus: Path) -> tuple[str, ...]:
        return short(
            corpus,
            f"model/attention={self.attention}",
            f"model/ffn={self.ffn}",
            f"balance={'bias' if self.ffn == 'moe' else 'none'}",
            f"model.mtp_depth={self.mtp_depth}",
            f"trainer.accumulate_grad_batches={self.accumulate}",
            f"data.batch_size={2 if self.accumulate == 1 else 1}",
            f"trainer.activation_checkpointing={self.checkpointing}",
            "trainer.val_every_n_steps=2",
            *EVERY_STEP,
        )


CHOICES = (("mla", "mha", "gqa"), ("dense", "moe"), (0, 1), (1, 3), ("none", "non_reentrant"))
CASES = list(starmap(Case, product(*CHOICES)))
SOME = [CASES[15], CASES[16]]  # MLA and MHA, both of every other choice


def interrupted(case: Case, reference: Reference, place: Path) -> Iterator[tuple[str, Path]]:
    """Each place, and the folder of a run that was interrupted there."""
    epoch = 4 if case.accumulate == 1 else 3  # steps of the nine rows
    words, whole, _ = reference
    yield "inside epoch 1", resumed(whole, 1, place / "one", words)
    yield "inside epoch 2", resumed(whole, epoch + 1, place / "two", words)
    yield "at the end of an epoch", resumed(whole, epoch, place / "end", words)
    yield "twice in a row", resumed(place / "one", epoch + 2, place / "twice", words)
    cut, change = place / "cut", partial(tell_myself, 15, "validation", 1)
    assert run([*words, f"run_dir={cut}"], cut.with_suffix(".log"), change) == STOPPED
    yield "inside a validation", resumed(cut, 2, place / "validated", words)


def failures(corpus: Path, place: Path, case: Case) -> list[str]:
    place.mkdir()
    whole = undisturbed(case.words(corpus), place / "whole")
    runs = interrupted(case, whole, place)
    found = [(name, differences(state(checkpoint(f, STEPS)), whole.end)) for name, f in runs]
    shutil.rmtree(place)
    return [f"{case} {name}: {wrong}" if wrong else "" for name, wrong in found]


@pytest.mark.parametrize("cases", [SOME, pytest.param(CASES, marks=pytest.mark.slow)])
def test_every_interruption_is_without_a_trace(
    corpus: Path, tmp_path: Path, cases: list[Case]
) -> None:
    def trial(number: int) -> list[str]:
        return failures(corpus, tmp_path / str(number), cases[number])

    with ThreadPoolExecutor(2) as pool:
        found = list(chain.from_iterable(pool.map(trial, range(len(cases)))))
    if cases is CASES:
        record("resume matrix", found.count(""), len(found))
    assert [wrong for wrong in found if wrong] == []


def test_first_and_last_step_are_logged_and_the_last_validated_whatever_the_intervals(
    corpus: Path, tmp_path: Path
) -> None:
    """Interrupted before or in that validation, or made longer, a run goes on exactly."""
    every = ("trainer.val_every_n_steps=5", "trainer.log_every_n_steps=5")
    words = short(corpus, *every, *EVERY_STEP)
    _, whole, end = undisturbed(words, tmp_path / "whole")
    log = whole.with_suffix(".log")
    assert validated(log) == [5, 10, STEPS]
    assert steps(log) == [1, 5, 10, STEPS]
    sampled = re.findall(r"## step (\d+)", (whole / "samples.md").read_text())
    assert sampled == ["5", "10", str(STEPS)]
    folders = [resumed(whole, step, tmp_path / f"from {step}", words) for step in (10, 11)]
    stopped, change = tmp_path / "stopped", partial(tell_myself, 15, "validation", 1, STEPS)
    assert run([*words, f"run_dir={stopped}"], stopped.with_suffix(".log"), change) == STOPPED
    for folder in (*folders, stopped):
        assert differences(state(checkpoint(folder, STEPS)), end) == [], folder
    longer = resumed(whole, STEPS, tmp_path / "longer", (*words, "trainer.max_steps=14"))
    assert validated(longer.with_suffix(".log")) == [14]


def validated(log: Path) -> list[int]:
    return [int(n) for n in re.findall(r"^step (\d+)  val/loss", log.read_text(), re.MULTILINE)]


def forget(owner: type, method: str = "load_state_dict") -> None:
    setattr(owner, method, lambda self, state: None)


def before_loading(edit: Callable[[dict[str, Any]], None]) -> None:
    load = LanguageModel.on_load_checkpoint

    def edited(self: Any, checkpoint: dict[str, Any]) -> None:
        edit(checkpoint)
        load(self, checkpoint)

    LanguageModel.on_load_checkpoint = edited  # type: ignore[method-assign]


def drop_biases(checkpoint: dict[str, Any]) -> None:
    for name, tensor in checkpoint["state_dict"].items():
        if name.endswith("e_score_correction_bias"):
            tensor.zero_()


def drop_moments(checkpoint: dict[str, Any]) -> None:
    checkpoint["optimizer_states"][0]["state"] = {}


def drop_step(checkpoint: dict[str, Any]) -> None:
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]
    progress["optimizer"]["step"]["total"] = {"ready": 0, "completed": 0}


FAULTS: dict[str, Callable[[], None]] = {
    "random numbers": partial(forget, ExactResume),
    "bias": partial(before_loading, drop_biases),
    "moments": partial(before_loading, drop_moments),
    "loader": partial(forget, TrainLoader),
    "step": partial(before_loading, drop_step),
    "best metric": partial(forget, Checkpoints),
}


def test_what_is_not_restored_is_noticed(corpus: Path, tmp_path: Path) -> None:
    step = 7
    words = short(corpus, "optim.lr=0.05", *EVERY_STEP)
    _, whole, wanted = undisturbed(words, tmp_path / "whole")
    (best,) = [s["best_step"] for s in wanted["callbacks"].values() if "best_step" in s]
    assert 0 < best < step

    def changed(name: str) -> bool:
        folder = tmp_path / name
        status = resume_at(whole, step, folder, words, *([FAULTS[name]] if name in FAULTS else []))
        return status != 0 or differences(state(checkpoint(folder, STEPS)), wanted) != []

    with ThreadPoolExecutor(2) as pool:
        no_fault, *found = pool.map(changed, ["no fault", *FAULTS])
    record("planted faults in restore that are noticed", sum(found), len(FAULTS))
    assert not no_fault
    assert [name for name, noticed in zip(FAULTS, found, strict=True) if not noticed] == []
