"""The processes (ranks) of one run: how they start, join, and follow rank zero.

torchrun starts them, by hand or from `train.py`, and ends the others where one dies.
"""

import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from typing import Literal, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from mla_lm.config import TrainerConfig
from mla_lm.errors import INTERRUPTED, STOPPED, UNREAD, UserError
from mla_lm.machine import accelerator_type

EXPLAINED = {2, STOPPED, INTERRUPTED, UNREAD}  # exit codes of a rank that has printed why
HEAD_START = 10  # seconds for rank zero to print an error, and for torchrun to end the others
T = TypeVar("T")


def world_size() -> int:
    """How many ranks this run has, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process among all ranks, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_world_size() -> int:
    """How many ranks run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def launched(cfg: TrainerConfig, overrides: Sequence[str]) -> bool:
    """Run `train.py` with these overrides on several ranks, where `cfg` asks for them.

    False where this process is to train: as the only one, or as one of the ranks. Where a rank
    fails, exits with its code, after a line where the rank has printed none.
    """
    if "WORLD_SIZE" in os.environ:
        return False
    wanted = 0 if cfg.devices == "auto" else cfg.devices
    n_gpus = _n_gpus(cfg, n_ranks=wanted)
    n = wanted or n_gpus or 1
    if n == 1:
        return False
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options = ["--standalone", f"--nproc-per-node={n}", sys.argv[0], *overrides]
    try:
        with _restored():
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // n)))
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # a rank says why in one line
            logging.disable()  # torchrun logs a page for each failure
            run.run(run.parse_args(options))
    except ChildFailedError as error:
        codes = {number: failure.exitcode for number, failure in error.failures.items()}
        explained = EXPLAINED.intersection(codes.values())
        if not explained:
            ended = ", ".join(f"rank {number} with exit code {codes[number]}" for number in codes)
            print(f"error: ended: {ended}", file=sys.stderr)
        raise SystemExit(min(explained, default=1)) from None
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None
    return True


@contextmanager
def _restored() -> Iterator[None]:
    """Afterwards, environment, signal handlers and logging are as before: a sweep goes on."""
    variables = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(variables)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        logging.disable(logging.NOTSET)


def _n_gpus(cfg: TrainerConfig, *, n_ranks: int) -> int:
    """GPUs for the ranks on this machine, 0 where they run on the CPU; UserError for too few."""
    device = accelerator_type(cfg.accelerator)
    if device == "cpu":
        return 0
    there = torch.cuda.device_count() if device == "cuda" else 1
    if n_ranks > there:
        raise UserError(
            f"trainer.devices: {n_ranks} processes need a GPU each, there are {there}; use fewer, "
            "or trainer.accelerator=cpu"
        )
    return there


@contextmanager
def joined(cfg: TrainerConfig) -> Iterator[None]:
    """Be one of the ranks of a run; only rank zero prints.

    Raises UserError when the others cannot be reached. Errors that all ranks meet are printed once:
    the others give rank zero a head start, in which torchrun ends them.
    """
    if world_size() == 1:
        yield
        return
    _join(cfg)
    try:
        with (
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            redirect_stdout(nowhere) if rank() else nullcontext(),
        ):
            yield
    except (UserError, OSError):
        if rank():
            time.sleep(HEAD_START)
        raise
    finally:
        distributed.destroy_process_group()


def _join(cfg: TrainerConfig) -> None:
    device = accelerator_type(cfg.accelerator)
    _n_gpus(cfg, n_ranks=world_size() if device == "mps" else local_world_size())  # no NCCL
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    timeout = timedelta(minutes=cfg.timeout_minutes)
    try:
        store, number, size = next(rendezvous("env://", timeout=timeout))
        # With a static rendezvous the store keeps the keys of the attempt before (torch 2.13).
        store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        distributed.init_process_group(
            backend, timeout=timeout, store=store, rank=number, world_size=size
        )
    except (RuntimeError, ValueError) as error:  # ValueError: a variable is missing
        address = " ".join(f"{n}={os.environ.get(n)}" for n in ("MASTER_ADDR", "MASTER_PORT"))
        reason = re.sub(r"^\[\S*\] ", "", str(error).splitlines()[0])[:160]  # without its C++ file
        raise UserError(
            f"{address} rank {rank()} cannot join ({reason}); start processes by torchrun"
        ) from None


def broadcast_from_rank0(action: Callable[[], T]) -> T:
    """What `action` returns on rank zero, on all ranks; where it fails there, all exit."""
    if world_size() == 1:
        return action()
    answer: list[tuple[T | None, bool]] = [(None, False)]
    try:
        if rank() == 0:
            answer[0] = (action(), True)
    finally:
        distributed.broadcast_object_list(answer)
    value, done = answer[0]
    if not done:
        time.sleep(HEAD_START)
        raise SystemExit(2)
    return value  # type: ignore[return-value]


def reduce_over_ranks(values: Tensor, how: Literal["mean", "sum", "max"]) -> Tensor:
    """The mean, sum or maximum over all ranks, in place; Lightning's has a barrier before each.

    Of tensors on the CPU by gloo, so that no GPU is waited for.
    """
    if distributed.is_initialized():
        op = distributed.ReduceOp.MAX if how == "max" else distributed.ReduceOp.SUM
        distributed.all_reduce(values, op=op)
        if how == "mean":
            values /= distributed.get_world_size()
    return values


def assert_same_on_all_ranks(values: Mapping[str, object]) -> None:
    """Raise UserError, on all ranks, where one has another value than rank zero."""
    if world_size() == 1:
        return
    of_all: list[Mapping[str, object]] = [{}] * world_size()
    distributed.all_gather_object(of_all, values)
    for other, theirs in enumerate(of_all):
        for key in {**of_all[0], **theirs}:
            found, wanted = theirs.get(key), of_all[0].get(key)
            if found != wanted:
                raise UserError(f"{key}: {found} on rank {other}, {wanted} on rank 0")
