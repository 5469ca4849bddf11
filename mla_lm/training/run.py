"""A whole training run, as one of its processes; mostly there is only this one."""

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import lightning as L

from mla_lm.checkpoint import record as checkpoint
from mla_lm.checkpoint.init_from import resolve_init
from mla_lm.checkpoint.resume import GIVEN_ANEW, environment_of, resolve_resume
from mla_lm.config import RunConfig
from mla_lm.config import compose as cli
from mla_lm.config.words import leaves, public, public_words
from mla_lm.cost import describe
from mla_lm.data import EvalLoader, PreparedData, TrainLoader, prepare
from mla_lm.errors import INTERRUPTED, UserError
from mla_lm.files import claimed
from mla_lm.machine import (
    accelerator_type,
    keep_freed_memory,
    out_of_memory,
    resolve_precision,
)
from mla_lm.training import processes as ranks
from mla_lm.training.checkpoints import Checkpoints
from mla_lm.training.exact_resume import ExactResume
from mla_lm.training.module import LanguageModel
from mla_lm.training.strategy import strategy_of

VERSIONS = ("python", "torch", "lightning", "commit", "precision")
SMALLER = "a smaller model, see `python -m mla_lm info`"


def fit(cfg: RunConfig, overrides: list[str]) -> None:
    """Run what `cfg` says and leave a checkpoint; `overrides` made it, and are stored.

    Raises UserError, on all ranks, when they were told different things or read different data.
    """
    keep_freed_memory()
    environment = environment_of(cfg)
    ranks.assert_same_on_all_ranks({key: environment[key] for key in VERSIONS}, told(cfg))
    cfg, overrides = ranks.broadcast_from_rank0(partial(resolved, cfg, overrides))
    origin = cfg.resume or cfg.init_from
    tokenizer = checkpoint.tokenizer_of(Path(origin)) if origin else None
    data = prepare(cfg.data, tokenizer=tokenizer)
    ranks.assert_same_on_all_ranks(
        {f"data {key}": data.manifest[key] for key in checkpoint.OF_CORPUS}
    )
    if cfg.resume:
        checkpoint.require_corpus(Path(cfg.resume), data.manifest)
    train_batches, val_batches = loaders(cfg, data)
    precision = resolve_precision(cfg.precision, accelerator_type(cfg.trainer.accelerator))
    if ranks.world_size() > 1:
        print(f"{ranks.world_size()} processes, {cfg.trainer.strategy}")
    print(describe(cfg, precision))
    print(data.describe(n_dropped=train_batches.n_dropped))

    loggers = cli.instantiate("logger", cfg.logger)
    callbacks = cli.instantiate("callbacks", cfg.callbacks)
    run_dir = Path(cfg.run_dir)
    L.seed_everything(cfg.seed, verbose=False)
    record = checkpoint.Record.of(
        cfg,
        overrides=overrides,
        tokenizer=data.tokenizer.json,
        data=data.manifest,
        environment=environment_of(cfg),
    )
    with memory_or(f"out of memory for the weights; what helps: (1) {SMALLER}"):
        module = LanguageModel(cfg, data.tokenizer, record)
        if cfg.init_from and not cfg.resume:
            module.model.load_state_dict(checkpoint.read_weights(Path(cfg.init_from))[1])
            print(f"begins with the weights of {cfg.init_from}")
    again = overrides_to_repeat(overrides, record.overrides)
    checkpoints = Checkpoints(run_dir / "checkpoints", cfg.checkpoint, overrides_to_repeat=again)
    trainer = trainer_of(cfg, loggers, [ExactResume(), *callbacks, checkpoints])

    def begin() -> None:
        claim.enter_context(claimed(run_dir, key="run_dir"))
        checkpoint.write_run_files(run_dir, cfg, record, overrides)

    with ExitStack() as claim, ctrl_c_ends(), memory_or(what_helps(cfg)):
        ranks.broadcast_from_rank0(begin)
        for logger in trainer.loggers:
            logger.log_hyperparams(public(cfg.model_dump(mode="json")))
        trainer.fit(module, train_batches, val_batches, ckpt_path=cfg.resume, weights_only=True)
    if ranks.rank() == 0:
        path = checkpoint.newest(run_dir)
        print(f"saved {path}" if path else f"{cfg.resume} is the end of the run already")


def resolved(cfg: RunConfig, overrides: list[str]) -> tuple[RunConfig, list[str]]:
    """What `cfg` comes to with the checkpoint it goes on from, and its overrides."""
    ranks.per_rank_batch_size(cfg.data.batch_size)
    found = resolve_resume(cfg, overrides)
    begins = cfg.init_from and not found[0].resume
    return resolve_init(*found) if begins else found


def loaders(cfg: RunConfig, data: PreparedData) -> tuple[TrainLoader, EvalLoader]:
    """The batches of this rank."""
    rows = {
        "seq_len": cfg.data.seq_len,
        "batch_size": ranks.per_rank_batch_size(cfg.data.batch_size),
        "rank": ranks.rank(),
        "n_ranks": ranks.world_size(),
    }
    accumulate = cfg.trainer.accumulate_grad_batches
    train_batches = TrainLoader(data.train, **rows, accumulate=accumulate, seed=cfg.seed)
    return train_batches, EvalLoader(data.val, **rows)


def trainer_of(cfg: RunConfig, loggers: list[Any], callbacks: list[L.Callback]) -> L.Trainer:
    """Lightning's trainer of a run."""
    accelerator = accelerator_type(cfg.trainer.accelerator)
    accumulate = cfg.trainer.accumulate_grad_batches
    return L.Trainer(
        **strategy_of(cfg.trainer),
        accelerator=accelerator,
        precision=resolve_precision(cfg.precision, accelerator),
        max_epochs=-1,
        max_steps=cfg.trainer.max_steps,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=cfg.trainer.gradient_clip_val,
        val_check_interval=cfg.trainer.val_every_n_steps * accumulate,
        check_val_every_n_epoch=None,
        limit_val_batches=cfg.trainer.limit_val_batches or 1.0,
        num_sanity_val_steps=0,
        log_every_n_steps=cfg.trainer.log_every_n_steps,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=cfg.run_dir,
        logger=loggers,
        callbacks=callbacks,
    )


def overrides_to_repeat(overrides: Sequence[str], kept: Sequence[str]) -> list[str]:
    """Of the overrides those that whoever goes on has to repeat, without secrets."""
    lost = [o for o in overrides if o not in kept and not o.lstrip("+").startswith(GIVEN_ANEW)]
    return public_words(lost)


def told(cfg: RunConfig) -> dict[str, object]:
    """What all ranks must have been told; folder and id, which each may draw, are the first's."""

    def shared(value: object) -> object:
        if not isinstance(value, str):
            return value
        return value.replace(cfg.run_dir, "run_dir").replace(cfg.run_id, "run_id")

    return {key: shared(value) for key, value in leaves(cfg.model_dump(mode="json"))}


@contextmanager
def ctrl_c_ends() -> Iterator[None]:
    """Until `Checkpoints` takes it over; Lightning would end with status 1, without a word."""

    def end(*_: Any) -> NoReturn:
        if ranks.rank() == 0:
            print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def memory_or(line: str) -> Iterator[None]:
    """UserError with that line when memory is out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(line) from None


def what_helps(cfg: RunConfig) -> str:
    """What to change when memory is out in a step, the least harmful first."""
    rows, accumulate = cfg.data.batch_size, cfg.trainer.accumulate_grad_batches
    ways = []
    if rows % (2 * ranks.world_size()) == 0:
        ways.append(
            f"data.batch_size={rows // 2} trainer.accumulate_grad_batches={2 * accumulate}, "
            "the same steps in halves"
        )
    if cfg.trainer.activation_checkpointing == "none":
        ways.append("trainer.activation_checkpointing=non_reentrant, which runs blocks twice")
    ways.append(f"data.seq_len={cfg.data.seq_len // 2} or {SMALLER}")
    numbered = "; ".join(f"({number}) {way}" for number, way in enumerate(ways, 1))
    step = f"a step of {rows} rows of {cfg.data.seq_len} tokens"
    return f"out of memory in {step}; what helps: {numbered}"
