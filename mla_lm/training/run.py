"""A whole training run, as one of its processes; mostly there is only this one."""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import lightning as L

from mla_lm.checkpoint import find
from mla_lm.checkpoint import record as checkpoint
from mla_lm.checkpoint.resume import resolve_origin, warn_of_environment
from mla_lm.config import RunConfig, compose
from mla_lm.config.explain import key_of
from mla_lm.config.secret import public, public_overrides
from mla_lm.config.section import leaves
from mla_lm.cost import describe
from mla_lm.data import PreparedData, prepare
from mla_lm.data.loader import EvalLoader, TrainLoader
from mla_lm.errors import UserError
from mla_lm.files import claimed
from mla_lm.machine import Hardware, hardware, keep_freed_memory, out_of_memory
from mla_lm.training import processes as ranks
from mla_lm.training.checkpoints import Checkpoints
from mla_lm.training.exact_resume import ExactResume
from mla_lm.training.module import LanguageModel
from mla_lm.training.strategy import strategy_of

VERSIONS = ("python", "torch", "lightning", "commit", "precision")
OF_THIS_START = ("run_dir", "run_id", "resume", "resume_allow")  # keys of no other start


def launch(cfg: RunConfig, overrides: Sequence[str] | None = None) -> None:
    """Run what `cfg` says, in as many processes as it asks for, and leave a checkpoint.

    `overrides` are those of the command line that made `cfg`; None for a run that was not started
    by one.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # a rank says in one line what fails
    if not ranks.launched(cfg.trainer, overrides or ()):
        with ranks.joined(cfg.trainer):
            fit(cfg, overrides)


def fit(cfg: RunConfig, overrides: Sequence[str] | None = None) -> None:
    """The run of one rank.

    Raises UserError, on all ranks, where their configurations, versions or data differ.
    """
    keep_freed_memory()
    invariant = cfg.model_dump(mode="json", exclude={"run_dir", "run_id", "logger"})
    ranks.assert_same_on_all_ranks(dict(leaves(invariant)))
    cfg, origin = ranks.broadcast_from_rank0(partial(resolve_origin, cfg, overrides or ()))
    here = hardware(cfg.precision, cfg.trainer.accelerator)
    data = prepare_data(cfg, origin, here)
    train_batches, val_batches = loaders(cfg, data)
    if ranks.world_size() > 1:
        print(f"{ranks.world_size()} processes, {cfg.trainer.strategy}")
    print(describe(cfg, here.precision))
    if here.device == "mps":
        print("Apple GPU: float32, no autocast, no torch.compile; untested, reports welcome")
    print(data.describe(n_dropped=train_batches.n_dropped))

    L.seed_everything(cfg.seed, verbose=False)
    record = checkpoint.Record.of(
        cfg,
        command=origin.command if cfg.resume and origin else command_of(overrides),
        tokenizer=data.tokenizer.json,
        data=data.manifest,
        environment=here.environment,
    )
    trainer = trainer_of(cfg, here, overrides_to_repeat(overrides or ()))
    run_dir = Path(cfg.run_dir)

    def begin() -> None:
        claim.enter_context(claimed(run_dir, key="run_dir"))
        checkpoint.write_run_files(run_dir, cfg, record)

    with ExitStack() as claim, memory_explained(cfg):
        module = LanguageModel(cfg, data.tokenizer, record)
        if cfg.init_from and not cfg.resume:
            module.model.load_state_dict(find.read_weights(Path(cfg.init_from))[1])
            print(f"starts with the weights of {cfg.init_from}")
        ranks.broadcast_from_rank0(begin)
        for logger in trainer.loggers:
            logger.log_hyperparams(public(cfg.model_dump(mode="json")))
        trainer.fit(module, train_batches, val_batches, ckpt_path=cfg.resume, weights_only=True)
    if ranks.rank() == 0:
        path = find.newest(run_dir)
        print(f"saved {path}" if path else f"{cfg.resume} is the end of the run already")


def prepare_data(cfg: RunConfig, origin: checkpoint.Record | None, here: Hardware) -> PreparedData:
    """The corpus, with the tokenizer of the checkpoint that the run resumes or starts from."""
    if cfg.resume and origin and ranks.rank() == 0:
        warn_of_environment(cfg, origin.environment, here.environment)
    data = prepare(cfg.data, tokenizer=origin.own_tokenizer() if origin else None)
    ranks.assert_same_on_all_ranks(
        {key: here.environment[key] for key in VERSIONS}
        | {f"data {key}": data.manifest[key] for key in checkpoint.OF_CORPUS}
    )
    if cfg.resume and origin:
        checkpoint.require_corpus(cfg.resume, origin, data.manifest)
    return data


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


def trainer_of(cfg: RunConfig, here: Hardware, repeat: Sequence[str]) -> L.Trainer:
    """Lightning's trainer of a run; `repeat` as in `Checkpoints`."""
    accumulate = cfg.trainer.accumulate_grad_batches
    saves = Checkpoints(Path(cfg.run_dir) / "checkpoints", cfg.checkpoint, repeat=repeat)
    callbacks = compose.instantiate("callbacks", cfg.callbacks)
    loggers = compose.instantiate("logger", cfg.logger)
    return L.Trainer(
        **strategy_of(cfg.trainer, here.precision),
        accelerator=here.device,
        precision=here.precision,
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
        callbacks=[ExactResume(), *callbacks, saves],
    )


def command_of(overrides: Sequence[str] | None) -> str:
    """The command that repeats the run in a new folder, without secrets; empty without one."""
    if overrides is None:
        return ""
    repeated = [override for override in overrides if key_of(override) not in OF_THIS_START]
    return shlex.join(["python", "train.py", *public_overrides(repeated)])


def overrides_to_repeat(overrides: Sequence[str]) -> list[str]:
    """Those that a resumed run needs again, as checkpoints do not store them; without secrets."""
    own = [o for o in overrides if key_of(o).partition(".")[0] in compose.OWN_YAML]
    return public_overrides(own)


@contextmanager
def memory_explained(cfg: RunConfig) -> Iterator[None]:
    """UserError that says what to change when memory is out, the least harmful first."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(
            f"out of memory with {cfg.data.batch_size} rows of {cfg.data.seq_len} tokens; try: "
            "(1) a smaller data.batch_size with more trainer.accumulate_grad_batches, the same "
            "steps in parts; (2) trainer.activation_checkpointing=non_reentrant, which runs blocks "
            "twice; (3) a smaller data.seq_len or model, see `python -m mla_lm info`"
        ) from None
