"""Settle what is run, the same on all ranks: checkpoint, device, corpus; then train it."""

import shlex
from collections.abc import Sequence
from functools import partial

from mla_lm.checkpoint.record import OF_CORPUS, Record
from mla_lm.checkpoint.resume import resolve_origin
from mla_lm.config import RunConfig, compose
from mla_lm.config.explain import key_of
from mla_lm.config.secret import public_overrides
from mla_lm.config.section import leaves
from mla_lm.cost import describe
from mla_lm.data import prepare
from mla_lm.machine import hardware, keep_freed_memory, require_memory
from mla_lm.training import processes as ranks
from mla_lm.training.trainer import memory_explained, run_trainer

VERSIONS = ("python", "torch", "lightning", "commit", "precision")
OF_THIS_START = ("run_dir", "run_id", "resume", "resume_allow")  # keys of no other start


def fit(cfg: RunConfig, overrides: Sequence[str] | None = None) -> None:
    """The run of one rank, from its configuration to its last checkpoint.

    `overrides` are those of the command line that made `cfg`; None for a run that was not started
    by one. Raises UserError, on all ranks, where their configurations, versions or data differ.
    """
    keep_freed_memory()
    invariant = cfg.model_dump(mode="json", exclude={"run_dir", "run_id", "logger"})
    ranks.assert_same_on_all_ranks(dict(leaves(invariant)))
    origin = ranks.broadcast_from_rank0(partial(resolve_origin, cfg, overrides or ()))
    cfg = origin.cfg
    here = hardware(cfg.precision, cfg.trainer.accelerator)
    of_ranks = {"n_ranks": ranks.world_size(), "n_local": ranks.local_world_size()}
    ranks.broadcast_from_rank0(partial(require_memory, cfg, here.device, **of_ranks))
    if ranks.world_size() > 1:
        print(f"{ranks.world_size()} processes, {cfg.trainer.strategy}")
    print(describe(cfg, here.precision), flush=True)
    if here.device == "mps":
        print("Apple GPU: float32, no autocast, no torch.compile; untested, reports welcome")

    data = prepare(cfg.data, tokenizer=origin.tokenizer())
    ranks.assert_same_on_all_ranks(
        {key: here.environment[key] for key in VERSIONS}
        | {f"data {key}": data.manifest[key] for key in OF_CORPUS}
    )
    ranks.broadcast_from_rank0(partial(origin.check, here.environment, data.manifest))
    record = Record.of(
        cfg,
        command=origin.record.command if origin.record and cfg.resume else command_of(overrides),
        tokenizer=data.tokenizer.json,
        data=data.manifest,
        environment=here.environment,
    )
    with memory_explained(cfg):
        run_trainer(cfg, here, data, record, repeat=overrides_to_repeat(overrides or ()))


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
