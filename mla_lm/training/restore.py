"""Whether a run can be resumed from a tree that was read: all of it is checked, nothing trusted.

It is compared with what a fresh run of the configuration would save, before anything is written.
States of the user's own callbacks are theirs to check.
"""

import re
from copy import deepcopy
from typing import Any

import lightning as L
import torch

from mla_lm.checkpoint.alike import require_alike
from mla_lm.checkpoint.record import PREFIX, RECORD, STEP, WEIGHTS
from mla_lm.config import RunConfig
from mla_lm.data.loader import TrainLoader
from mla_lm.errors import UserError, one_line
from mla_lm.model import Transformer
from mla_lm.objective.optimizer import build_optimizer

LOOPS = ("fit_loop", "validate_loop", "test_loop", "predict_loop")
BATCHES, VALIDATION = "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"
STEPS = "epoch_loop.automatic_optimization.optim_progress"
CALLBACKS = ("ExactResume", "Checkpoints")  # whose states a resumed run needs
VERSION, READABLE = "pytorch-lightning_version", r"2(\.\d+){1,2}(\.?[a-z]+\d+)?"


def require_restorable(
    checkpoint: dict[str, Any],
    cfg: RunConfig,
    trainer: L.Trainer,
    module: L.LightningModule,
    batches: TrainLoader,
) -> None:
    """UserError for what no run of `cfg` saves; its optimizer keeps the settings of `cfg`.

    The callbacks of `trainer` have taken their states afterwards, to see whether they can.
    """
    with torch.device("meta"):
        model = Transformer(cfg.model)
        optimizer = build_optimizer(model, cfg.optim).state_dict()
    loops = {name: getattr(trainer, name).state_dict() for name in LOOPS}
    loops["fit_loop"]["state_dict"] = {"combined_loader": [batches.state_dict()]}
    fresh = {
        WEIGHTS: {f"{PREFIX}{name}": tensor for name, tensor in model.state_dict().items()},
        "optimizer_states": [optimizer],
        "lr_schedulers": [],
        "loops": loops,
        "n_skipped": 0,
        STEP: 0,
        VERSION: L.__version__,
    }
    try:
        require_alike({key: checkpoint.get(key) for key in fresh}, fresh, "")
        if not re.fullmatch(READABLE, checkpoint[VERSION]):
            raise ValueError(f"{VERSION}={checkpoint[VERSION][:20]}: is not 2.x")
        _require_agreement(checkpoint)
        _try_callbacks(checkpoint["callbacks"], trainer, module)
    except Exception as error:  # a tree made by hand fails in many ways
        reason = error if type(error) is ValueError else one_line(error)
        raise UserError(f"{cfg.resume}: cannot be resumed ({reason})") from None
    checkpoint["optimizer_states"][0]["param_groups"] = optimizer["param_groups"]


def _require_agreement(checkpoint: dict[str, Any]) -> None:
    """The counts of steps and of their micro-batches are those of the same run."""
    step, loop = checkpoint[STEP], checkpoint["loops"]["fit_loop"]
    accumulated = checkpoint[RECORD]["config"]["trainer"]["accumulate_grad_batches"]
    for name, counted, n in (
        (STEPS, loop[STEPS]["optimizer"]["step"]["total"]["completed"], step),
        (BATCHES, loop[BATCHES]["total"]["ready"], step * accumulated),
    ):
        if counted != n:
            raise ValueError(f"{name}: counts {counted} where {STEP}={step} makes {n}")
    for number, state in checkpoint["optimizer_states"][0]["state"].items():
        if "step" in state and state["step"] > step:
            raise ValueError(f"optimizer_states: step {state['step']:g} of {number}, {STEP}={step}")


def _try_callbacks(states: dict[str, Any], trainer: L.Trainer, module: L.LightningModule) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        state = states.get(callback.state_key)
        if type(callback).__name__ in CALLBACKS and not state:
            raise ValueError(f"callbacks: {callback.state_key} is missing")
        if state and type(callback).__module__.startswith("mla_lm."):
            callback.setup(trainer, module, "fit")
            callback.load_state_dict(deepcopy(state))
