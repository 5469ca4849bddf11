"""The processes of one run: how they are started, what they agree on, and who speaks.

torchrun starts them, by hand or from here; the first one decides, the others follow.
"""

import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from mla_lm.cli import INTERRUPTED, STOPPED
from mla_lm.config import TrainerConfig
from mla_lm.errors import UserError
from mla_lm.machine import accelerator_type

VARIABLES = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LOST = ("gloo", "NCCL", "TCPStore", "Connection")  # in what torch says when another rank is gone
T = TypeVar("T")


def n_ranks() -> int:
    """How many processes this run has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Which of those on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def n_local_ranks() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def share(batch_size: int) -> int:
    """The rows of a batch that one process takes; UserError where they do not divide."""
    if batch_size % n_ranks():
        raise UserError(
            f"data.batch_size={batch_size}: must be a multiple of the {n_ranks()} processes"
        )
    return batch_size // n_ranks()


def launched(cfg: TrainerConfig, overrides: Sequence[str]) -> bool:
    """Whether the run has been done by several processes, as `cfg` asks for.

    False in a run of one process, and in each of several. Where one fails, the others are ended and
    this process ends too: with its status where it has said why, else after naming it.
    """
    n = cfg.devices
    if n == "auto":
        on_gpus = accelerator_type(cfg.accelerator) == "cuda"
        n = torch.cuda.device_count() if on_gpus else 1
    if "WORLD_SIZE" in os.environ:
        _check_variables(n)
        return False
    if n == 1:
        return False
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // n)))
    logging.disable()  # torchrun's own account of what is said here in one line
    words = ["--standalone", f"--nproc-per-node={n}", sys.argv[0], *overrides]
    try:
        run.run(run.parse_args(words))
    except ChildFailedError as error:
        _explain({number: failure.exitcode for number, failure in error.failures.items()})
    except SignalException as error:
        raise SystemExit(STOPPED if error.sigval == STOPPED - 128 else 128 + error.sigval) from None
    return True


def _check_variables(n_wanted: int) -> None:
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        raise UserError(f"{missing[0]}: not set, though WORLD_SIZE is; start processes by torchrun")
    if n_wanted not in (1, n_local_ranks()):
        started = n_local_ranks()
        raise UserError(f"trainer.devices={n_wanted}: {started} processes were started here")


def _explain(statuses: Mapping[int, int]) -> NoReturn:
    """End as the first rank to fail did; those that lost it, and were ended, come second."""
    number, status = min(statuses.items(), key=lambda item: (item[1] in (1, -15), item[0]))
    if status in (2, STOPPED, INTERRUPTED):
        raise SystemExit(status)
    how = f"ended with status {status}" if status > 0 else f"was killed by signal {-status}"
    print(f"error: rank {number} {how}", file=sys.stderr)
    raise SystemExit(1)


@contextmanager
def joined(cfg: TrainerConfig) -> Iterator[None]:
    """Be one of the processes of a run; only the first one prints.

    Raises UserError when the others cannot be reached; ends the process where they are lost.
    """
    if n_ranks() == 1:
        yield
        return
    where = f"MASTER_ADDR={os.environ['MASTER_ADDR']} MASTER_PORT={os.environ['MASTER_PORT']}"
    on_gpus = accelerator_type(cfg.accelerator) == "cuda"
    if on_gpus:
        torch.cuda.set_device(local_rank())
    timeout = timedelta(minutes=cfg.timeout_minutes)
    try:
        store, number, size = next(rendezvous("env://", timeout=timeout))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpus else "gloo",
            timeout=timeout,
            store=PrefixStore(attempt, store),  # torchrun keeps it through restarts
            rank=number,
            world_size=size,
        )
    except RuntimeError as error:
        raise UserError(f"{where}: rank {rank()} cannot join ({_reason(error)})") from None
    try:
        with open(os.devnull, "w") as nowhere:
            if rank():
                with redirect_stdout(nowhere):
                    yield
            else:
                yield
    except RuntimeError as error:
        if not any(word in str(error) for word in LOST):
            raise
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # from torchrun, which ends who is left
        print(f"error: rank {rank()} lost another ({_reason(error)})", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        distributed.destroy_process_group()


def first(action: Callable[[], T]) -> T:
    """What `action` returns in the first process, for all; where it fails, all end."""
    if n_ranks() == 1:
        return action()
    answer: list[tuple[T | None, bool]] = [(None, False)]
    failure: UserError | OSError | None = None
    if rank() == 0:
        try:
            answer[0] = (action(), True)
        except (UserError, OSError) as error:
            failure = error
    distributed.broadcast_object_list(answer)
    value, done = answer[0]
    if not done:
        distributed.barrier()  # all know before one is gone
        raise failure or SystemExit(2)
    return value  # type: ignore[return-value]


def agree(*groups: Mapping[str, object]) -> None:
    """Raise UserError, in all processes, where one has another value than the first."""
    if n_ranks() == 1:
        return
    values = {key: value for group in groups for key, value in group.items()}
    of_all: list[dict[str, object]] = [{}] * n_ranks()
    distributed.all_gather_object(of_all, values)

    def compare() -> None:
        for other, theirs in enumerate(of_all):
            for key in {**of_all[0], **theirs}:
                values = (theirs.get(key), of_all[0].get(key))
                if values[0] != values[1]:
                    raise UserError(f"{key}: {values[0]} on rank {other}, {values[1]} on rank 0")

    first(compare)


def _reason(error: Exception) -> str:
    """The first line, without the place in the source that it may begin with."""
    return re.sub(r"^\[\S*\] ", "", str(error).splitlines()[0])[:160]
