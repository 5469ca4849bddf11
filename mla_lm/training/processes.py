"""The processes of one run: how they are started, what they agree on, and who speaks.

torchrun starts them, by hand or from here; the first one decides, the others follow.
"""

import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from typing import Literal, NoReturn, TypeVar

import torch
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from mla_lm.config import TrainerConfig
from mla_lm.errors import INTERRUPTED, STOPPED, UNREAD, UserError
from mla_lm.machine import accelerator_type

VARIABLES = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LOST = ("gloo", "NCCL", "TCPStore", "Connection")  # in what torch says when another rank is gone
SAID = (2, UNREAD)  # status of a rank that has said why it ends, or has nobody to say it to
BY_TORCHRUN = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
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
    if "WORLD_SIZE" in os.environ:
        _check_variables(cfg.devices)
        return False
    on_gpus = accelerator_type(cfg.accelerator) == "cuda"
    n = (torch.cuda.device_count() if on_gpus else 1) if cfg.devices == "auto" else cfg.devices
    if on_gpus:
        _require_gpus(n)
    if n == 1:
        return False
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    words = ["--standalone", f"--nproc-per-node={n}", sys.argv[0], *overrides]
    try:
        with _undone():
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // n)))
            logging.disable()  # torchrun's own account of what is said here in one line
            run.run(run.parse_args(words))
    except ChildFailedError as error:
        _explain({number: failure.exitcode for number, failure in error.failures.items()})
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None
    return True


def _check_variables(devices: int | Literal["auto"]) -> None:
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        raise UserError(f"{missing[0]}: not set, though WORLD_SIZE is; start processes by torchrun")
    started = n_local_ranks()
    if devices not in ("auto", 1, started):
        raise UserError(f"trainer.devices={devices}: {started} processes were started here")


def _require_gpus(n: int) -> None:
    there = torch.cuda.device_count()
    if n > there:
        raise UserError(f"trainer.devices: {n} processes need a GPU each, there are {there}")


@contextmanager
def _undone() -> Iterator[None]:
    """Leave variables, signal handlers and logging as they were, for the next run of a sweep."""
    variables = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in BY_TORCHRUN}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(variables)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        logging.disable(logging.NOTSET)


def _explain(statuses: Mapping[int, int]) -> NoReturn:
    """End as a rank that has said why, else as the first that was neither ended nor lost one."""

    def order(item: tuple[int, int]) -> tuple[bool, bool, bool, int]:
        number, status = item
        ended = status in (-signal.SIGTERM, STOPPED, INTERRUPTED)
        return status not in SAID, status in (1, -signal.SIGTERM), ended, number

    number, status = min(statuses.items(), key=order)
    if status in (*SAID, STOPPED, INTERRUPTED):
        raise SystemExit(status)
    how = f"ended with status {status}" if status > 0 else f"was killed by signal {-status}"
    print(f"error: rank {number} {how}", file=sys.stderr)
    raise SystemExit(1)


@contextmanager
def joined(cfg: TrainerConfig) -> Iterator[None]:
    """Be one of the processes of a run; only the first one prints.

    Raises UserError when the others cannot be reached; where another fails or is lost, ends the
    process, of all ranks with one line.
    """
    if n_ranks() == 1:
        yield
        return
    timeout = timedelta(minutes=cfg.timeout_minutes)
    with _joining():
        store, number, size = next(rendezvous("env://", timeout=timeout))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(attempt, store)  # torchrun keeps it through restarts
    try:
        with _one_speaker(store):
            on_gpus = accelerator_type(cfg.accelerator) == "cuda"
            if on_gpus:
                _require_gpus(n_local_ranks())
                torch.cuda.set_device(local_rank())
            backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
            with _joining():
                distributed.init_process_group(
                    backend, timeout=timeout, store=store, rank=number, world_size=size
                )
            with (
                open(os.devnull, "w") as nowhere,
                redirect_stdout(nowhere) if rank() else nullcontext(),
            ):
                yield
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


@contextmanager
def _joining() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        where = " ".join(f"{name}={os.environ[name]}" for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise UserError(f"{where}: rank {rank()} cannot join ({_reason(error)})") from None


@contextmanager
def _one_speaker(store: Store) -> Iterator[None]:
    """Where ranks fail, the first says why; those that fail too, or lose it, end without a word."""
    try:
        yield
    except (UserError, OSError):
        _outlive()
        if _count(store, "failed", 1) > 1:
            raise SystemExit(2) from None
        raise
    except KeyboardInterrupt:
        if rank():
            raise SystemExit(INTERRUPTED) from None
        raise
    except RuntimeError as error:
        if not any(word in str(error) for word in LOST):
            raise
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # from torchrun, which ends who is left
        if _count(store, "failed", 0):
            raise SystemExit(2) from None
        if _count(store, "lost", 1) == 1:
            print(f"error: rank {rank()} lost another ({_reason(error)})", file=sys.stderr)
        raise SystemExit(1) from None


def _outlive() -> None:
    """Let torchrun, which ends who is left, wait for what this rank has to say and to close."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _count(store: Store, what: str, more: int) -> int:
    """How many ranks have `failed` or `lost` another, with `more`; only those without the store."""
    try:
        return store.add(what, more)
    except RuntimeError:
        return more


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
            _outlive()
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
                found, wanted = theirs.get(key), of_all[0].get(key)
                if found != wanted:
                    raise UserError(f"{key}: {found} on rank {other}, {wanted} on rank 0")

    first(compare)


def _reason(error: Exception) -> str:
    """The first line, without the place in the source that it may begin with."""
    return re.sub(r"^\[\S*\] ", "", str(error).splitlines()[0])[:160]
