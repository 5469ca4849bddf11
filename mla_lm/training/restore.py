"""Whether a run can be resumed from a tree that was read: all of it is checked, nothing trusted.

It is compared with what a fresh run of the configuration would save. States of the user's own
callbacks are theirs to check.
"""

from typing import Any

import lightning as L
import torch

from mla_lm.checkpoint.alike import require_alike
from mla_lm.checkpoint.record import PREFIX, RECORD, STEP, WEIGHTS
from mla_lm.config import RunConfig
from mla_lm.errors import UserError, one_line
from mla_lm.model import Transformer
from mla_lm.objective.optimizer import build_optimizer

LOOPS = ("fit_loop", "validate_loop", "test_loop", "predict_loop")
BATCHES, VALIDATION = "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"
STEPS = "epoch_loop.automatic_optimization.optim_progress"
CALLBACKS = ("ExactResume", "Checkpoints")  # whose states a resumed run needs


def require_restorable(checkpoint: dict[str, Any], trainer: L.Trainer, cfg: RunConfig) -> None:
    """UserError for what no run of `cfg` saves; its optimizer keeps the settings of `cfg`."""
    with torch.device("meta"):
        model = Transformer(cfg.model)
        optimizer = build_optimizer(model, cfg.optim).state_dict()
    loops = {name: getattr(trainer, name).state_dict() for name in LOOPS}
    loops["fit_loop"]["state_dict"] = {"combined_loader": [{"sample": 0}]}
    fresh = {
        WEIGHTS: {f"{PREFIX}{name}": tensor for name, tensor in model.state_dict().items()},
        "optimizer_states": [optimizer],
        "lr_schedulers": [],
        "loops": loops,
        "n_skipped": 0,
        STEP: 0,
    }
    try:
        require_alike({key: checkpoint.get(key) for key in fresh}, fresh, "")
        _require_agreement(checkpoint)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            needed = type(callback).__name__ in CALLBACKS
            if needed and not checkpoint["callbacks"].get(callback.state_key):
                raise ValueError(f"callbacks: without {callback.state_key}")
    except Exception as error:  # a tree made by hand fails in many ways
        reason = error if type(error) is ValueError else one_line(error)
        raise UserError(f"{cfg.resume}: cannot be resumed ({reason})") from None
    checkpoint["optimizer_states"][0]["param_groups"] = optimizer["param_groups"]


def _require_agreement(checkpoint: dict[str, Any]) -> None:
    """The counts of steps and of their micro-batches are those of the same run."""
    step, loop = checkpoint[STEP], checkpoint["loops"]["fit_loop"]
    accumulated = checkpoint[RECORD]["config"]["trainer"]["accumulate_grad_batches"]
    moments = checkpoint["optimizer_states"][0]["state"].values()
    for name, counted, n in (
        (STEPS, loop[STEPS]["optimizer"]["step"]["total"]["completed"], step),
        (BATCHES, loop[BATCHES]["total"]["ready"], step * accumulated),
        ("optimizer_states", max((float(of.get("step", 0)) for of in moments), default=0), step),
    ):
        if counted > n or (counted < n and name != "optimizer_states"):
            raise ValueError(f"{name}: counts {counted}, {STEP} is {step}")
