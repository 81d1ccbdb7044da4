"""A sweep's tasks on this machine: in this process, or each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait

from letgo.core.errors import WorldError
from letgo.sweep.cell import run_task
from letgo.sweep.resources import processors
from letgo.sweep.worker import serve
from letgo.sweep.workers import CellTask, Ending, Workers


class InProcess(Workers):
    """One task at a time, in the process that asks."""

    task: CellTask | None = None

    def free(self) -> int:
        return 0 if self.task else 1

    def start(self, task: CellTask) -> None:
        self.task = task

    def ended(self, timeout: float | None) -> Sequence[Ending]:
        if self.task is None:
            return []
        task, self.task = self.task, None
        return [Ending(task, run_task(task))]


class _Worker:
    """A process that runs one task after another, and what it is at."""

    def __init__(self, threads: int, devices: str | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.task: CellTask | None = None
        self.devices = devices
        self.pipe: Connection
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, threads, devices, os.getpid()))
        self.process.start()
        # Held by the worker alone, so that its death is the end of the pipe.
        theirs.close()

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Processes(Workers):
    """A process for each slot (`letgo.sweep.resources.device_slots`); they are started when there is something to do,
    and one that dies is replaced. Each has so many threads, by default an equal share of the processors."""

    def __init__(self, slots: Sequence[str | None], threads: int | None = None) -> None:
        self.free_slots = list(slots)
        self.threads = threads or max(1, processors() // len(slots))
        self.workers: list[_Worker] = []

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            if worker.task is None and worker.process.is_alive():
                worker.pipe.send(None)
                worker.process.join(10)
            worker.end()
        self.workers.clear()

    def free(self) -> int:
        return len(self.free_slots) + sum(worker.task is None for worker in self.workers)

    def start(self, task: CellTask) -> None:
        worker = next((worker for worker in self.workers if worker.task is None), None)
        if worker is None:
            worker = _Worker(self.threads, self.free_slots.pop(0))
            self.workers.append(worker)
        worker.task = task
        # Where the worker has died since its last task, `ended` reports it.
        try:
            worker.pipe.send(task)
        except OSError:
            worker.process.kill()

    def ended(self, timeout: float | None) -> Sequence[Ending]:
        busy = {worker.pipe: (worker, worker.task) for worker in self.workers if worker.task is not None}
        endings = []
        for worker, task in (busy[pipe] for pipe in wait(list(busy), timeout)):  # type: ignore[index]
            worker.task = None
            try:
                how = worker.pipe.recv()
                if isinstance(how, WorldError):
                    raise how
                endings.append(Ending(task, how))
            except (EOFError, OSError):
                worker.end()
                self.workers.remove(worker)
                self.free_slots.append(worker.devices)
                code = worker.process.exitcode or 0
                why = f"killed by signal {-code}" if code < 0 else f"ended with code {code}"
                endings.append(Ending(task, "died", why))
        return endings
