"""Train what `run.py` has settled, on one rank: batches, model, Lightning's trainer."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning as L

from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.checkpoint import find
from mla_lm.checkpoint.record import STEP, Record, write_run_files
from mla_lm.config import RunConfig
from mla_lm.config.compose import instantiate, instantiate_loggers
from mla_lm.data import PreparedData
from mla_lm.data.loader import EvalLoader, TrainLoader
from mla_lm.errors import UserError
from mla_lm.files import claimed, named, unhidden
from mla_lm.machine import Hardware, out_of_memory
from mla_lm.training import processes as ranks
from mla_lm.training.checkpoints import Checkpoints
from mla_lm.training.exact_resume import ExactResume
from mla_lm.training.module import LanguageModel
from mla_lm.training.restore import require_restorable
from mla_lm.training.strategy import CheckpointFiles, strategy_of


def run_trainer(
    cfg: RunConfig,
    here: Hardware,
    data: PreparedData,
    record: Record,
    *,
    repeat: Sequence[str],
) -> None:
    """Train from the seed, the weights or the checkpoint of `cfg`; `repeat` as in `Checkpoints`."""
    train_batches, val_batches = loaders(cfg, data)
    steps = cfg.trainer.max_steps * cfg.trainer.accumulate_grad_batches
    n_epochs = steps * train_batches.global_batch / train_batches.n_windows
    print(data.describe(n_dropped=train_batches.n_dropped, n_epochs=n_epochs))
    L.seed_everything(cfg.seed, verbose=False)
    run_dir = Path(cfg.run_dir)
    saves = Checkpoints(run_dir / "checkpoints", cfg.checkpoint, repeat=repeat)
    callbacks = [ExactResume(), *instantiate("callbacks", cfg.callbacks), saves]
    loggers = instantiate_loggers(cfg.logger)
    trainer = trainer_of(cfg, here, loggers=loggers, callbacks=callbacks)
    module = LanguageModel(cfg, data.tokenizer, record)
    if cfg.init_from and not cfg.resume:
        module.model.load_state_dict(find.read_weights(Path(cfg.init_from))[1])
        print(f"starts with the weights of {cfg.init_from}")
    first_step = 0
    if cfg.resume:
        resumed = checkpoint_file.read(Path(cfg.resume))
        require_restorable(resumed, cfg, trainer, module, train_batches)
        first_step = resumed[STEP]
        assert isinstance(trainer.strategy.checkpoint_io, CheckpointFiles)
        trainer.strategy.checkpoint_io.resumed = resumed
        del resumed  # Lightning lets go of it once it has taken all of it
    is_new = not unhidden(run_dir)
    with named(run_dir), ExitStack() as claim:

        def begin() -> dict[str, Any]:
            claim.enter_context(claimed(run_dir, key="run_dir"))
            if is_new:
                claim.enter_context(_emptied_without_a_step(trainer, first_step))
            return write_run_files(run_dir, cfg, record)

        shown = ranks.broadcast_from_rank0(begin)
        for logger in trainer.loggers:
            logger.log_hyperparams(shown)
        trainer.fit(module, train_batches, val_batches, ckpt_path=cfg.resume, weights_only=True)
    if ranks.rank() == 0:
        path = find.newest(run_dir)
        print(f"saved {path}" if path else f"{cfg.resume} is the end of the run already")


@contextmanager
def _emptied_without_a_step(trainer: L.Trainer, first_step: int) -> Iterator[None]:
    """Empty the folder of a run that fails before its first step: the next may begin there."""
    try:
        yield
    except BaseException:
        if trainer.global_step <= first_step:
            for path in unhidden(Path(trainer.default_root_dir)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise


def loaders(cfg: RunConfig, data: PreparedData) -> tuple[TrainLoader, EvalLoader]:
    """The batches of this rank."""
    rows, n = cfg.data.batch_size, ranks.world_size()
    if rows % n:
        raise UserError(f"data.batch_size={rows}: must be a multiple of the {n} processes")
    own = {
        "seq_len": cfg.data.seq_len,
        "batch_size": rows // n,
        "rank": ranks.rank(),
        "n_ranks": n,
    }
    accumulate = cfg.trainer.accumulate_grad_batches
    train_batches = TrainLoader(data.train, **own, accumulate=accumulate, seed=cfg.seed)
    return train_batches, EvalLoader(data.val, **own)


def trainer_of(
    cfg: RunConfig, here: Hardware, *, loggers: list[Any], callbacks: list[Any]
) -> L.Trainer:
    """Lightning's trainer of this rank."""
    accumulate = cfg.trainer.accumulate_grad_batches
    return L.Trainer(
        **strategy_of(cfg.trainer, here.precision),
        accelerator=here.device,
        precision=here.precision,
        max_epochs=-1,
        max_steps=cfg.trainer.max_steps,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=cfg.trainer.gradient_clip_val,
        val_check_interval=cfg.trainer.validation_interval * accumulate,
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


@contextmanager
def memory_explained(cfg: RunConfig) -> Iterator[None]:
    """UserError that says what to change when memory is out, the least harmful first."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        switch = cfg.balance.switch_loss_weight > 0
        but = " (balance.switch_loss_weight then balances each part)" if switch else ""
        raise UserError(
            f"out of memory with {cfg.data.batch_size} rows of {cfg.data.seq_len} tokens; try: "
            "(1) a smaller data.batch_size with more trainer.accumulate_grad_batches, the same "
            f"steps in parts{but}; (2) trainer.activation_checkpointing=non_reentrant, which runs "
            "blocks twice; (3) a smaller data.seq_len or model, see `python -m mla_lm info`"
        ) from None
