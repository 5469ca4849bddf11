"""Train a model: `python train.py [group=choice] [key=value]`; `--help` shows examples."""

from mla_lm import cli
from mla_lm.config import RunConfig


def train(cfg: RunConfig, overrides: list[str]) -> None:
    """Run what `cfg` says and leave a checkpoint; `overrides` made it, and are stored."""
    from pathlib import Path

    import lightning as L

    from mla_lm import checkpoint
    from mla_lm.accounting import describe
    from mla_lm.data import EvalLoader, TrainLoader, prepare
    from mla_lm.init_from import resolve_init
    from mla_lm.machine import accelerator_type, keep_freed_memory, resolve_precision
    from mla_lm.resume import claimed, environment_of, resolve_resume
    from mla_lm.training.checkpoint_io import CheckpointFiles
    from mla_lm.training.checkpoints import Checkpoints
    from mla_lm.training.module import LanguageModel
    from mla_lm.training.random_state import RandomState

    keep_freed_memory()
    cfg, overrides = resolve_resume(cfg, overrides)
    if cfg.init_from and not cfg.resume:
        cfg, overrides = resolve_init(cfg, overrides)
    origin = cfg.resume or cfg.init_from
    tokenizer = checkpoint.tokenizer_of(Path(origin)) if origin else None
    data = prepare(cfg.data, tokenizer=tokenizer)
    if cfg.resume:
        checkpoint.require_corpus(Path(cfg.resume), data.manifest)
    seq_len, batch_size = cfg.data.seq_len, cfg.data.batch_size
    accumulate = cfg.trainer.accumulate_grad_batches
    train_batches = TrainLoader(
        data.train,
        seq_len=seq_len,
        batch_size=batch_size,
        accumulate=accumulate,
        seed=cfg.seed,
    )
    val_batches = EvalLoader(data.val, seq_len=seq_len, batch_size=batch_size)
    accelerator = accelerator_type(cfg.trainer.accelerator)
    precision = resolve_precision(cfg.precision, accelerator)
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
    checkpoints = Checkpoints(run_dir / "checkpoints", cfg.checkpoint)
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=1,
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
        plugins=[CheckpointFiles()],
    )
    with claimed(run_dir):
        checkpoint.write_run_files(run_dir, cfg, record)
        trainer.fit(module, train_batches, val_batches, ckpt_path=cfg.resume, weights_only=True)
    path = checkpoint.newest(run_dir)
    print(f"saved {path}" if path else f"{cfg.resume} is the end of the run already")


if __name__ == "__main__":
    cli.main(train, name="train", kind=RunConfig)
