"""Leave one thing out when a run is restored, and the resumed run ends otherwise."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from mla_lm.data import TrainLoader
from mla_lm.training.checkpoints import Checkpoints
from mla_lm.training.module import LanguageModel
from mla_lm.training.exact_resume import ExactResume
from tests.reliability.record import record
from tests.reliability.runs import (
    STEPS,
    Corpus,
    checkpoint,
    differences,
    resume_at,
    run,
    short,
    state,
)

AT = 7  # behind the best validation, inside an epoch


def forget(owner: type, method: str) -> None:
    setattr(owner, method, lambda self, state: None)


def change_before_loading(edit: Callable[[dict[str, Any]], None]) -> None:
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


def drop_schedule(checkpoint: dict[str, Any]) -> None:
    checkpoint["lr_schedulers"] = []


def drop_step(checkpoint: dict[str, Any]) -> None:
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]
    progress["optimizer"]["step"]["total"] = {"ready": 0, "completed": 0}


FAULTS: dict[str, Callable[[], None]] = {
    "random numbers": partial(forget, ExactResume, "load_state_dict"),
    "bias": partial(change_before_loading, drop_biases),
    "moments": partial(change_before_loading, drop_moments),
    "loader": partial(forget, TrainLoader, "load_state_dict"),
    "schedule": partial(change_before_loading, drop_schedule),
    "step": partial(change_before_loading, drop_step),
    "best metric": partial(forget, Checkpoints, "load_state_dict"),
}


def test_what_is_not_restored_is_noticed(corpus: Corpus, tmp_path: Path) -> None:
    words = short(corpus, "optim.lr=0.05", "checkpoint.every_n_steps=1", f"checkpoint.keep={STEPS}")
    whole = tmp_path / "whole"
    assert run([*words, f"run_dir={whole}"], whole.with_suffix(".log")) == 0
    wanted = state(checkpoint(whole, STEPS))
    (best,) = [s["best_step"] for s in wanted["callbacks"].values() if "best_step" in s]
    assert 0 < best < AT

    def changed(name: str) -> list[str]:
        faults = [FAULTS[name]] if name in FAULTS else []
        folder = tmp_path / name
        status = resume_at(whole, AT, folder, words, *faults)
        if status != 0:
            return [f"status {status}"]
        return differences(state(checkpoint(folder, STEPS)), wanted)

    with ThreadPoolExecutor(2) as pool:
        none, *found = pool.map(changed, ["no fault", *FAULTS])
    assert none == []
    noticed = [name for name, different in zip(FAULTS, found, strict=True) if different]
    record("planted faults in restore that are noticed", len(noticed), len(FAULTS))
    assert noticed == list(FAULTS)
