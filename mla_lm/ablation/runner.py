"""Runs the cells of a study, each a process of its own; what is on disk decides what is left.

A finished cell is skipped, one that was cut short resumes from its newest checkpoint, one that
fails does not stop the others.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from rich.progress import Progress, TextColumn, TimeElapsedColumn

from mla_lm.ablation.cell import done, write_config
from mla_lm.ablation.study import Cell
from mla_lm.config import RunConfig

CELLS, LOGS = "cells", "logs"


class Runner:
    """`jobs` cells at a time in `out/cells`, their output in `out/logs`."""

    def __init__(self, out: Path, configs: Mapping[str, RunConfig], *, jobs: int) -> None:
        self.out, self.configs, self.jobs = out, configs, jobs
        self.failed: dict[str, str] = {}  # the reason by cell
        self.processes: list[subprocess.Popen[str]] = []
        self.stopped = False
        line = TextColumn("{task.fields[line]}", markup=False)
        self.progress = Progress("{task.description}", TimeElapsedColumn(), line)
        self.progress.disable = not self.progress.console.is_terminal

    def run(self, cells: Sequence[Cell]) -> None:
        """Run what is left of these; `failed` has those that could not be finished."""
        todo = []
        for cell in cells:
            if done(self.out / CELLS / cell.name):
                self._say(f"{cell.name}: skipped, finished before")
            else:
                todo.append(cell)
        with ThreadPoolExecutor(self.jobs) as pool, self.progress:
            task = self.progress.add_task("study", line=f"0 of {len(todo)} cells done")
            futures = [pool.submit(self._run, cell) for cell in todo]
            try:
                for n_done, future in enumerate(as_completed(futures), 1):
                    future.result()
                    self.progress.update(task, line=f"{n_done} of {len(todo)} cells done")
            except BaseException:
                self._stop()
                raise
            self.progress.remove_task(task)

    def _stop(self) -> None:
        """Let the running cells save and end; start no more."""
        self.stopped = True
        for process in list(self.processes):
            process.terminate()

    def _run(self, cell: Cell) -> None:
        if self.stopped:
            return
        folder = self.out / CELLS / cell.name
        log = self.out / LOGS / f"{cell.name}.log"
        self._say(f"{cell.name}: running")
        last = found = ""
        try:
            write_config(folder, cell.config(self.configs[cell.arm], folder))
            log.parent.mkdir(exist_ok=True)
            with log.open("a", buffering=1) as file, self._started(folder) as process:
                task = self.progress.add_task(cell.name, line="")
                for line in process.stdout or ():
                    file.write(line)
                    last = line.strip() or last
                    found = last if "val/bpb" in line else found
                    self.progress.update(task, line=last)
                self.progress.remove_task(task)
            status = process.returncode
        except OSError as error:
            status, last = 1, str(error)
        if status == 0:
            self._say(f"{cell.name}: finished  {found}")
        elif not self.stopped:
            reason = f"signal {-status} after: {last}" if status < 0 else last or f"status {status}"
            self.failed[cell.name] = reason
            self._say(f"{cell.name}: failed  {reason}")

    def _started(self, folder: Path) -> "subprocess.Popen[str]":
        environment = dict(os.environ)
        if self.jobs > 1:
            n_threads = max(1, (os.cpu_count() or 1) // self.jobs)
            environment.setdefault("OMP_NUM_THREADS", str(n_threads))
        process = subprocess.Popen(
            [sys.executable, "-m", "mla_lm.ablation.cell", str(folder)],
            stdin=subprocess.PIPE,  # its end tells the cell that the runner is gone
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=environment,
            start_new_session=True,  # Ctrl-C is for the runner, which lets the cells save
        )
        self.processes.append(process)
        if self.stopped:  # in the meantime
            process.terminate()
        return process

    def _say(self, line: str) -> None:
        self.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
