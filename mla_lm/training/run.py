"""A whole training run, as one of its processes; mostly there is only this one."""

from contextlib import nullcontext
from pathlib import Path

import lightning as L

from mla_lm import checkpoint, cli, ranks
from mla_lm.accounting import describe
from mla_lm.config import RunConfig
from mla_lm.config.words import leaves, public
from mla_lm.data import EvalLoader, TrainLoader, prepare
from mla_lm.errors import UserError
from mla_lm.init_from import resolve_init
from mla_lm.machine import (
    accelerator_type,
    keep_freed_memory,
    out_of_memory,
    resolve_precision,
)
from mla_lm.resume import GIVEN_ANEW, claimed, environment_of, resolve_resume
from mla_lm.training.checkpoints import Checkpoints
from mla_lm.training.module import LanguageModel
from mla_lm.training.publish import publish_config
from mla_lm.training.random_state import RandomState
from mla_lm.training.strategy import strategy_of

VERSIONS = ("python", "torch", "lightning", "commit", "precision")


def fit(cfg: RunConfig, overrides: list[str]) -> None:
    """Run what `cfg` says and leave a checkpoint; `overrides` made it, and are stored.

    Raises UserError, on all ranks, when they were told different things or read different data.
    """

    def resolve() -> tuple[RunConfig, list[str]]:
        ranks.share(cfg.data.batch_size)
        resolved = resolve_resume(cfg, overrides)
        begins = cfg.init_from and not resolved[0].resume
        return resolve_init(*resolved) if begins else resolved

    keep_freed_memory()
    environment = environment_of(cfg)
    ranks.agree({key: environment[key] for key in VERSIONS}, told(cfg))
    cfg, overrides = ranks.first(resolve)
    origin = cfg.resume or cfg.init_from
    tokenizer = checkpoint.tokenizer_of(Path(origin)) if origin else None
    data = prepare(cfg.data, tokenizer=tokenizer)
    ranks.agree({f"data {key}": data.manifest[key] for key in checkpoint.OF_CORPUS})
    if cfg.resume:
        checkpoint.require_corpus(Path(cfg.resume), data.manifest)
    accumulate = cfg.trainer.accumulate_grad_batches
    rows = {
        "seq_len": cfg.data.seq_len,
        "batch_size": ranks.share(cfg.data.batch_size),
        "rank": ranks.rank(),
        "n_ranks": ranks.n_ranks(),
    }
    train_batches = TrainLoader(data.train, **rows, accumulate=accumulate, seed=cfg.seed)
    val_batches = EvalLoader(data.val, **rows)
    accelerator = accelerator_type(cfg.trainer.accelerator)
    precision = resolve_precision(cfg.precision, accelerator)
    if ranks.n_ranks() > 1:
        print(f"{ranks.n_ranks()} processes, {cfg.trainer.strategy}")
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
    module = LanguageModel(cfg, data.tokenizer, record)
    if cfg.init_from and not cfg.resume:
        module.model.load_state_dict(checkpoint.read_weights(Path(cfg.init_from))[1])
        print(f"begins with the weights of {cfg.init_from}")
    not_kept = [o for o in overrides if o not in record.overrides and not o.startswith(GIVEN_ANEW)]
    checkpoints = Checkpoints(run_dir / "checkpoints", cfg.checkpoint, said_again=not_kept)
    trainer = L.Trainer(
        **strategy_of(cfg.trainer),
        accelerator=accelerator,
        precision=precision,
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
        default_root_dir=run_dir,
        logger=loggers,
        callbacks=[RandomState(), *callbacks, checkpoints],
    )
    with claimed(run_dir) if ranks.rank() == 0 else nullcontext():
        if ranks.rank() == 0:
            checkpoint.write_run_files(run_dir, cfg, record, overrides)
        publish_config(trainer.loggers, public(cfg.model_dump(mode="json")))
        try:
            trainer.fit(module, train_batches, val_batches, ckpt_path=cfg.resume, weights_only=True)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise UserError(what_helps(cfg)) from None
    if ranks.rank() == 0:
        path = checkpoint.newest(run_dir)
        print(f"saved {path}" if path else f"{cfg.resume} is the end of the run already")


def told(cfg: RunConfig) -> dict[str, object]:
    """What all ranks must have been told; folder and id, which each may draw, are the first's."""

    def shared(value: object) -> object:
        if not isinstance(value, str):
            return value
        return value.replace(cfg.run_dir, "run_dir").replace(cfg.run_id, "run_id")

    return {key: shared(value) for key, value in leaves(cfg.model_dump(mode="json"))}


def what_helps(cfg: RunConfig) -> str:
    """What to change when memory is out, the least harmful first."""
    rows, accumulate = cfg.data.batch_size, cfg.trainer.accumulate_grad_batches
    return (
        f"out of memory in a step of {rows} rows of {cfg.data.seq_len} tokens; what helps: "
        f"(1) data.batch_size={max(1, rows // 2)} "
        f"trainer.accumulate_grad_batches={2 * accumulate}, the same steps in halves; "
        "(2) trainer.activation_checkpointing=non_reentrant, which runs blocks twice; "
        f"(3) data.seq_len={cfg.data.seq_len // 2} or a smaller model, see `python -m mla_lm info`"
    )
