"""`trainer.max_minutes`: a rehearsal of the run is timed, and settles how many steps fit.

Those become the run's `trainer.max_steps`, so that its schedules, checkpoints and exact resume are
those of any run of so many steps. Where they are fewer than `trainer.min_steps`, the next of
`trainer.fallbacks` is rehearsed: a smaller model, or fewer rows per step.
"""

import io
import math
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint

from mla_lm.checkpoint.record import Record
from mla_lm.config import DataConfig, RunConfig, TrainerConfig
from mla_lm.config.compose import instantiate, with_values
from mla_lm.cost import train_flops_per_token
from mla_lm.data import PreparedData, Tokenizer
from mla_lm.errors import UserError
from mla_lm.machine import Hardware, MatmulPeak, hardware, keep_freed_memory, require_memory
from mla_lm.memory import resident
from mla_lm.training import processes as ranks
from mla_lm.training.checkpoints import show
from mla_lm.training.module import LanguageModel
from mla_lm.training.trainer import loaders, trainer_of

WARM_UP = 3  # steps before those that are timed
MAX_TIMED = 100  # steps
MINUTES = 5  # the budget whose share is spent on timing, where there is none
VAL_BATCHES = 4  # of the rehearsal
NEVER = 2**40  # steps: the rehearsal validates when it ends
TIMING_SHARE, VALIDATION_SHARE = 0.03, 0.1  # of the budget
HOPELESS = 1.5  # times the seconds per step that `min_steps` allow: no more steps are timed


class Steps(NamedTuple):
    """How long a run is, by the keys of its configuration; no step where none fits."""

    max_steps: int
    val_every_n_steps: int


class Pace(NamedTuple):
    """Seconds on this machine: before the first step, per step, per validation with its save."""

    start: float
    step: float
    validation: float

    def of_run(self, run: Steps) -> float:
        """Seconds of a whole run."""
        n_validations = -(-run.max_steps // run.val_every_n_steps)
        return self.start + run.max_steps * self.step + n_validations * self.validation


def settled(
    cfg: RunConfig,
    recomposed: Callable[[Sequence[str]], RunConfig],
    rehearse: Callable[[RunConfig], Pace],
) -> tuple[RunConfig, float]:
    """`cfg`, or the first of its fallbacks that holds `min_steps`, with the steps that fit.

    `recomposed` is `cfg` with overrides below its own. The second result is the expected minutes,
    rehearsals included. Raises UserError, on all ranks, where the budget holds no step.
    """
    assert cfg.trainer.max_minutes is not None
    budget, began = 60 * cfg.trainer.max_minutes, time.perf_counter()
    taken: list[str] = []
    for fallback in (*cfg.trainer.fallbacks, None):
        pace = Pace(*[math.inf] * 3)
        least = min(cfg.trainer.min_steps or 1, cfg.trainer.max_steps)
        for _ in range(1 if fallback is None else 2):  # again: the machine may have been busy
            again, spent = _of_rank0((rehearse(cfg), time.perf_counter() - began))
            pace = Pace(*map(min, pace, again))
            fitting = within(cfg.trainer, pace, budget - spent)
            if fitting.max_steps >= least:
                break
        if fitting.max_steps >= least or fallback is None:
            break
        print(f"{fitting.max_steps} steps would fit: taking {fallback}", flush=True)
        taken += fallback.split()
        cfg = recomposed(taken)
    if fitting.max_steps < 1:
        raise UserError(
            f"trainer.max_minutes={cfg.trainer.max_minutes:g}: too short for a step; here the "
            f"first takes {pace.start + pace.step:.1f} s, others {pace.step:.1f} s, a validation "
            f"{pace.validation:.1f} s, and timing them took {spent:.1f} s"
        )
    if fitting.max_steps == cfg.trainer.max_steps:
        print(f"trainer.max_steps={fitting.max_steps} is reached before trainer.max_minutes")
    cfg = with_values(cfg, {f"trainer.{key}": n for key, n in fitting._asdict().items()})
    return cfg, (spent + pace.of_run(fitting)) / 60


def within(cfg: TrainerConfig, pace: Pace, seconds: float) -> Steps:
    """As many steps and validations as take `seconds`, and not more than `cfg` allows."""
    left = seconds - pace.start
    if every := cfg.val_every_n_steps:
        steps = int((left - pace.validation) / (pace.step + pace.validation / every))
    else:
        affordable = VALIDATION_SHARE * seconds / pace.validation
        n_validations = 4 if affordable >= 4 else 2 if affordable >= 2 else 1
        every = max(1, int((left - n_validations * pace.validation) / pace.step) // n_validations)
        steps = every * n_validations
    if steps >= cfg.max_steps:
        return Steps(cfg.max_steps, cfg.validation_interval)
    return Steps(steps if left >= pace.step + pace.validation else 0, every)


def rehearse(
    cfg: RunConfig, *, here: Hardware, prepared: Callable[[DataConfig], PreparedData]
) -> Pace:
    """Time a few steps, a part of a validation and a save in a temporary folder, without loggers.

    Callbacks that are not this project's are left out: nobody knows what else they do.
    """
    trainer, minutes = cfg.trainer, cfg.trainer.max_minutes or MINUTES
    data = prepared(cfg.data)
    train_batches, val_batches = loaders(cfg, data)
    n_batches = min(len(val_batches), trainer.limit_val_batches or len(val_batches))
    watch = Stopwatch(
        TIMING_SHARE * 60 * minutes,
        hopeless=HOPELESS * 60 * minutes / (trainer.min_steps or 1),
    )
    with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        rehearsed = {
            "run_dir": folder,
            "trainer.limit_val_batches": min(VAL_BATCHES, n_batches),
            "trainer.max_steps": max(trainer.max_steps, WARM_UP + MAX_TIMED + 1),
            "trainer.val_every_n_steps": NEVER,
        }
        cfg = with_values(cfg, rehearsed)
        own = [c for c in instantiate("callbacks", cfg.callbacks) if "mla_lm" in type(c).__module__]
        record = Record.of(cfg, command="", tokenizer=data.tokenizer.json, data={}, environment={})
        module = LanguageModel(cfg, data.tokenizer, record)
        by_lightning = trainer_of(cfg, here, loggers=[], callbacks=[*own, watch])
        watch.began = time.perf_counter()
        by_lightning.fit(module, train_batches, val_batches)
    torch.compiler.reset()  # what it learnt of shapes would change how the run is compiled
    return watch.pace(n_batches)


def measured(cfg: RunConfig) -> dict[str, float | None]:
    """What training costs here, on random tokens: time, speed, share of matmul peak, memory."""
    here = hardware(cfg.precision, cfg.trainer.accelerator)
    require_memory(cfg, here.device, n_ranks=1, n_local=1)
    keep_freed_memory()
    per_step = cfg.data.batch_size * cfg.trainer.accumulate_grad_batches * cfg.data.seq_len
    ids: Any = np.random.default_rng(0).integers(256, size=2 * per_step + 1)
    tokenizer = Tokenizer.train((), vocab_size=257, end_of_text=cfg.data.tokenizer.end_of_text)
    data = PreparedData(ids, ids[: cfg.data.batch_size * cfg.data.seq_len + 1], tokenizer, {})
    pace = rehearse(cfg, here=here, prepared=lambda _: data)
    speed = per_step / pace.step
    flops = speed * train_flops_per_token(cfg.model, cfg.data.seq_len)
    on_gpu = here.device == "cuda"
    return {
        "step_seconds": pace.step,
        "tokens_per_second": speed,
        "mfu": MatmulPeak(here.precision, torch.device(here.device)).share(flops),
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else resident("VmHWM"),
    }


def _of_rank0(found: tuple[Pace, float]) -> tuple[Pace, float]:
    return ranks.broadcast_from_rank0(lambda: found)


class Stopwatch(Checkpoint):
    """Ends a rehearsal after enough steps, a few batches of validation and a save; times them."""

    def __init__(self, seconds: float, *, hopeless: float) -> None:
        """`seconds` to spend on steps; none where one takes longer than `hopeless`."""
        self.seconds, self.hopeless = seconds, hopeless
        self.began = self.ended = 0.0
        self.steps: list[float] = []  # when each ended
        self.batches: list[float] = []  # of the validation
        self.n_steps = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, LanguageModel)
        if pl_module.micro_losses:
            return
        self.steps.append(time.perf_counter())
        if len(self.steps) == WARM_UP:
            self.n_steps = WARM_UP + ranks.broadcast_from_rank0(self._affordable)
        trainer.should_stop = len(self.steps) == self.n_steps  # Lightning validates first

    def on_validation_batch_end(self, *_: Any) -> None:
        self.batches.append(time.perf_counter())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "rehearsal.ckpt")
        show(trainer, pl_module)
        self.ended = time.perf_counter()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt):
            raise exception  # Lightning would end with status 1

    def pace(self, n_batches: int) -> Pace:
        """What a run takes whose validation has `n_batches`."""
        timed = self.steps[max(0, min(WARM_UP, len(self.steps) - 1) - 1) :]
        step = (timed[-1] - timed[0]) / (len(timed) - 1)  # not the median: slow steps count too
        batch = (self.batches[-1] - self.batches[0]) / max(1, len(self.batches) - 1)
        first, rest = self.batches[0] - self.steps[-1], self.ended - self.batches[-1]
        start = self.steps[0] - self.began - step
        return Pace(start, step, first + batch * (n_batches - 1) + rest)

    def _affordable(self) -> int:
        """How many steps to time."""
        step = self.steps[-1] - self.steps[-2]
        return 0 if step > self.hopeless else max(WARM_UP, min(MAX_TIMED, int(self.seconds / step)))
