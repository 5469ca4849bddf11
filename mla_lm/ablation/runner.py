"""Runs the cells of a study, each a process of its own; what is on disk decides what is left.

A finished cell is skipped, one that was cut short continues from its newest checkpoint, one that
fails does not stop the others.
"""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mla_lm.ablation.cell import PROFILE, done
from mla_lm.ablation.study import Cell

CELLS, LOGS = "cells", "logs"
PROGRESS = re.compile(r"step (\d+)/(\d+)  (loss .* tokens/s)")
VALIDATION = re.compile(r"val/bpb (\S+)")


class State(NamedTuple):
    """Of a cell: waiting, running, finished, skipped or failed."""

    what: str = "waiting"
    step: int = 0
    steps: int = 0
    note: str = ""  # loss and speed, bits per byte, or the reason


class Runner:
    """`jobs` cells at a time in `out/cells`, what they say in `out/logs`."""

    def __init__(self, out: Path, *, jobs: int) -> None:
        self.out, self.jobs = out, jobs
        self.states: dict[str, State] = {}
        self.processes: set[subprocess.Popen[str]] = set()
        self.console = Console()
        self.begun = time.perf_counter()
        self.stopped, self.starting = False, threading.Lock()

    def folder(self, cell: Cell) -> Path:
        """The run folder of a cell."""
        return self.out / CELLS / cell.name

    def run(self, cells: Sequence[Cell], *, profiled: Sequence[str]) -> None:
        """Run what is left of these, and measure those named; `states` has those that failed."""
        self.states |= {cell.name: State() for cell in cells}
        with ThreadPoolExecutor(self.jobs) as pool, Display(self) as show:
            try:
                waiting = [pool.submit(self._run, cell, cell.name in profiled) for cell in cells]
                while not all(future.done() for future in waiting):
                    show()
                    time.sleep(0.2)
            except BaseException:
                self.stop()
                raise
            for future in waiting:
                future.result()
            show()

    def stop(self) -> None:
        """Let the cells that run save and end; start no more."""
        with self.starting:
            self.stopped = True
            for process in self.processes:
                process.terminate()

    def failed(self) -> list[str]:
        """`NAME (reason)` of each."""
        return [f"{n} ({s.note})" for n, s in self.states.items() if s.what == "failed"]

    def _run(self, cell: Cell, profiled: bool) -> None:
        folder = self.folder(cell)
        if done(folder):
            self._tell(cell, State("skipped", note="finished before"))
            return
        words = [*([PROFILE] * profiled), *cell.words, f"seed={cell.seed}"]
        log = self.out / LOGS / f"{cell.name}.log"
        try:
            log.parent.mkdir(exist_ok=True)
            with log.open("a", buffering=1) as file:
                file.write(f"$ {' '.join(words)}\n")
                self._tell(cell, State("running"))
                command = [sys.executable, "-m", "mla_lm.ablation.cell", str(folder), *words]
                status, last = self._follow(cell, command, file.write)
        except OSError as error:
            status, last = 1, str(error)
        if status < 0:
            last = f"signal {-status} after: {last}"
        if status == 0:
            self._tell(cell, State("finished", note=self.states[cell.name].note))
        elif not self.stopped:
            self._tell(cell, State("failed", note=last or f"exit status {status}"))

    def _follow(
        self, cell: Cell, command: Sequence[str], write: Callable[[str], object]
    ) -> tuple[int, str]:
        """Exit status and last line of a process, whose lines tell how far it is."""
        last = ""
        environment = dict(os.environ)
        if self.jobs > 1:
            n_threads = max(1, (os.cpu_count() or 1) // self.jobs)
            environment.setdefault("OMP_NUM_THREADS", str(n_threads))
        with self.starting:
            if self.stopped:
                return 1, ""
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # its end tells the cell that the runner is gone
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                env=environment,
                start_new_session=True,  # Ctrl-C is for the runner, which lets the cells save
            )
            self.processes.add(process)
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                write(line)
                last = line.strip() or last
                if found := PROGRESS.search(line):
                    step, steps, note = found.groups()
                    self.states[cell.name] = State("running", int(step), int(steps), note)
                elif found := VALIDATION.search(line):
                    state = self.states[cell.name]
                    self.states[cell.name] = state._replace(note=f"val/bpb {found[1]}")
        with self.starting:
            self.processes.discard(process)
        return process.returncode, last

    def _tell(self, cell: Cell, state: State) -> None:
        self.states[cell.name] = state
        if not self.console.is_terminal:
            line = f"{cell.name}: {state.what}  {state.note}".rstrip()
            print(f"{line}\n", end="", flush=True)  # in one piece: cells speak from their threads


class Display:
    """The live table; nothing where there is no terminal."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.live = Live(console=runner.console, auto_refresh=False)

    def __enter__(self) -> Callable[[], None]:
        if not self.runner.console.is_terminal:
            return lambda: None
        self.live.start()
        return lambda: self.live.update(table(self.runner), refresh=True)

    def __exit__(self, *_: object) -> None:
        if self.runner.console.is_terminal:
            self.live.stop()


def table(runner: Runner) -> Table:
    """Every cell, and how long the rest may take."""
    states = runner.states
    shown = Table("cell", "state", "step", "", title=Text(f"{runner.out}  {left(runner)}"))
    for name, state in states.items():
        step = f"{state.step}/{state.steps}" if state.steps else ""
        shown.add_row(name, state.what, step, Text(state.note))
    return shown


def left(runner: Runner) -> str:
    """Time left in words, from the share of this start's cells that is done."""
    mine = [state for state in runner.states.values() if state.what != "skipped"]
    done = sum(share(state) for state in mine)
    if not done or done == len(mine):
        return ""
    seconds = (time.perf_counter() - runner.begun) * (len(mine) - done) / done
    return f"about {seconds / 60:.0f} min left"


def share(state: State) -> float:
    """How much of a cell is done."""
    if state.what in ("finished", "failed"):
        return 1.0
    return state.step / state.steps if state.steps else 0.0
