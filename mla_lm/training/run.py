"""Settle what is run, the same on all ranks: checkpoint, device, corpus; then train it."""

import shlex
import signal
from collections.abc import Sequence
from functools import partial

from mla_lm.checkpoint.corpus import OF_USER
from mla_lm.checkpoint.init_from import resolve_init
from mla_lm.checkpoint.record import OF_CORPUS, Record
from mla_lm.checkpoint.resume import resolve_origin
from mla_lm.config import RunConfig, compose
from mla_lm.config.compose import load_config
from mla_lm.config.explain import key_of
from mla_lm.config.secret import hidden, public
from mla_lm.config.section import leaves
from mla_lm.cost import describe
from mla_lm.data import Tokenizer, prepare
from mla_lm.errors import output_may_end
from mla_lm.machine import Hardware, hardware, keep_freed_memory, require_memory
from mla_lm.training import processes as ranks
from mla_lm.training.plan import rehearse, settled
from mla_lm.training.trainer import memory_explained, run_trainer

VERSIONS = ("python", "torch", "lightning", "commit", "precision")
OF_THIS_START = ("run_dir", "run_id", "resume", "resume_allow")  # keys of no other start


@output_may_end(partial(signal.raise_signal, signal.SIGTERM))  # which saves, then ends the run
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
    cfg, minutes = _planned(cfg, overrides or (), here, origin.tokenizer())
    print(hidden(describe(cfg, here.precision, minutes)), flush=True)
    if here.device == "mps":
        print("Apple GPU: float32, no autocast, no torch.compile; untested, reports welcome")

    data = prepare(cfg.data, tokenizer=origin.tokenizer(), listed=origin.listed)
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


def _planned(
    cfg: RunConfig, overrides: Sequence[str], here: Hardware, tokenizer: Tokenizer | None
) -> tuple[RunConfig, float | None]:
    """A new run with the steps of its budget, if it has one, and the minutes it will take."""
    if cfg.trainer.max_minutes is None or cfg.resume:
        return cfg, None
    prepare(cfg.data, tokenizer=tokenizer)  # not part of the budget
    print(f"timing a few steps for trainer.max_minutes={cfg.trainer.max_minutes:g}", flush=True)
    with memory_explained(cfg):
        return settled(
            cfg,
            partial(_recomposed, cfg, overrides),
            partial(rehearse, here=here, prepared=partial(prepare, tokenizer=tokenizer)),
        )


def _recomposed(cfg: RunConfig, overrides: Sequence[str], below: Sequence[str]) -> RunConfig:
    """The new run `cfg` with more overrides, below its own."""
    more = [*below, *overrides]
    again = load_config(more, run_dir=cfg.run_dir, run_id=cfg.run_id)
    again = resolve_init(again, more)[0] if again.init_from else again
    return again.model_copy(update={"resume": None})


def command_of(overrides: Sequence[str] | None) -> str:
    """The command that repeats the run in a new folder, without secrets; empty without one."""
    if overrides is None:
        return ""
    repeated = [override for override in overrides if key_of(override) not in OF_THIS_START]
    return shlex.join(["python", "train.py", *public(repeated)])


def overrides_to_repeat(overrides: Sequence[str]) -> list[str]:
    """Those that a resumed run needs again, as checkpoints do not store them; without secrets."""
    own = [
        override
        for override in overrides
        if (key := key_of(override)) in OF_USER or key.partition(".")[0] in compose.OWN_YAML
    ]
    return public(own)
