"""Running a sweep: what can run next is told from what lies in its folder, so a kill at any moment costs one cell's
last steps at most."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from letgo.digest import digest_of
from letgo.errors import UserError
from letgo.progress import Quiet, Reporter
from letgo.results import write_text
from letgo.runs.sweeps import (
    RUNS_FOLDER,
    SWEEP_FILE,
    CellState,
    CellStatus,
    GroupState,
    Sweep,
    TrialState,
    read_sweep,
    write_sweep,
)
from letgo.sweep.cell import ERROR_FILE, Outcome, Task, alone, outcome, run_task, write_error
from letgo.sweep.grid import Cell, Grid, Group, with_setting
from letgo.sweep.table import TABLE_FILE, as_csv
from letgo.sweep.tuning import BROKEN, MEETS, Range, Trial, Tune, choose, judge
from letgo.workers import start_worker

DEATHS = 3
"""So often a run may lose its process before it counts as failed."""


def sweep(grid: Grid, *, resume: bool = False, retry_failed: bool = False, reporter: Reporter | None = None) -> Sweep:
    """Run every cell of a grid: tune each group where the grid says so, then run its seeds and attack them.

    A cell that fails is recorded and the rest goes on; one that collapsed is not attacked. Each finished cell is kept
    whatever happens next: call again with `resume=True` to go on, which ends with the same table.

    Args:
        grid: as `read_grid` gives it.
        resume: go on with what lies in the output folder.
        retry_failed: try failed cells again.
        reporter: where progress goes.

    Raises:
        UserError: the folder holds another sweep, or one that is at work.
    """
    folder = grid.output
    if (folder / SWEEP_FILE).is_file():
        if not resume:
            raise UserError(f"{folder} holds a sweep; go on with it by --resume, or name another folder")
        if read_sweep(folder).fingerprint != grid.fingerprint:
            raise UserError(f"{folder} holds a sweep of another grid than {grid.source}; name another folder")
    elif folder.is_dir() and any(path.name[0] != "." for path in folder.iterdir()):
        raise UserError(f"{folder} is not empty, and holds no sweep; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        return _Execution(grid, reporter or Quiet()).run(retry_failed)


class _Execution:
    def __init__(self, grid: Grid, reporter: Reporter) -> None:
        self.grid, self.reporter = grid, reporter
        self.outcomes: dict[Path, Outcome] = {}
        self.deaths: dict[Path, int] = {}
        self.threads = max(1, (os.cpu_count() or 1) // grid.workers)

    def run(self, retry_failed: bool) -> Sweep:
        if retry_failed:
            for path in (self.grid.output / RUNS_FOLDER).glob(f"*/{ERROR_FILE}"):
                path.unlink()
        state = self.write()
        with self.reporter.task("sweep", self.size()) as progress:
            done = 0
            for _ in self.completed():
                state = self.write()
                progress.describe(_counts(state))
                now = self.size() - self.left()
                progress.advance(max(now - done, 0))
                done = now
        return state

    # -- what there is to do ------------------------------------------------------------------------------------------

    def task(self, cell: Cell, changes: dict[str, object], attacks: bool) -> Task:
        name = f"{cell.name}-{digest_of(changes)[:6]}" if changes else cell.name
        tags = (f"sweep:{self.grid.output.resolve().name}",)
        return Task(
            self.grid.output / RUNS_FOLDER / name,
            with_setting({"save_total_limit": 1} | dict(cell.settings), changes),
            self.grid.attacks if attacks else (),
            tags,
        )

    def known(self, task: Task) -> Outcome | None:
        """What is known of a task; what is known for good is remembered."""
        found = self.outcomes.get(task.directory)
        if found is None or (task.attacks and not found.failed):
            found = outcome(task)
            if found is not None:
                self.outcomes[task.directory] = found
        return found

    def trials(self, group: Group) -> tuple[list[Trial], Task | None]:
        """The trials of a group that are done, and the one that comes next; None when tuning is over."""
        trials: list[Trial] = []
        tune = self.grid.tune
        if tune is None:
            return trials, None
        while (changes := tune.next(group.optimizer, trials)) is not None:
            task = self.task(group.cells[0], changes, attacks=False)
            found = self.known(task)
            if found is None:
                return trials, task
            run = task.directory.relative_to(self.grid.output).as_posix()
            if found.result is None:
                trials.append(Trial(changes, "failed", 1e6, run))
            else:
                trials.append(judge(tune, changes, run, found.result))
        return trials, None

    def tasks(self, group: Group) -> list[Task]:
        """What a group's cells are, once it is tuned; until then the next trial alone."""
        trials, following = self.trials(group)
        if following is not None:
            return [following]
        changes = dict(choose(trials).changes) if trials else {}
        return [self.task(cell, changes, attacks=True) for cell in group.cells]

    def waiting(self) -> list[Task]:
        return [task for group in self.grid.groups for task in self.tasks(group) if self.known(task) is None]

    def size(self) -> int:
        """How many runs there are in all, at most: candidates count, and the chosen one's attacks."""
        return sum(len(group.cells) + candidates(self.grid.tune, group) for group in self.grid.groups)

    def left(self) -> int:
        left = 0
        for group in self.grid.groups:
            trials, following = self.trials(group)
            if following is not None:
                left += len(group.cells) + candidates(self.grid.tune, group) - len(trials)
            else:
                left += sum(self.known(task) is None for task in self.tasks(group))
        return left

    # -- doing it -----------------------------------------------------------------------------------------------------

    def completed(self) -> Iterator[Task]:
        """Do everything, yielding each task when it is over."""
        if self.grid.workers == 1:
            while waiting := self.waiting():
                run_task(waiting[0])
                yield waiting[0]
            return
        while self.waiting():
            yield from self._with_pool()

    def _with_pool(self) -> Iterator[Task]:
        """As `completed`, in worker processes; returns when all is done, or when a worker has died."""
        running: dict[Future[None], Task] = {}
        context = multiprocessing.get_context("spawn")
        arguments = (str(self.grid.output), self.threads, os.getpid())
        with ProcessPoolExecutor(self.grid.workers, context, start_worker, arguments) as pool:
            while True:
                busy = {task.directory for task in running.values()}
                free = self.grid.workers - len(running)
                for task in [task for task in self.waiting() if task.directory not in busy][:free]:
                    running[pool.submit(run_task, task)] = task
                if not running:
                    return
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    task = running.pop(future)
                    if isinstance(future.exception(), BrokenProcessPool):
                        self.died(task)
                        for other in running.values():
                            self.died(other)
                        return
                    yield task

    def died(self, task: Task) -> None:
        """A worker was killed while it ran this task, or one beside it."""
        self.deaths[task.directory] = self.deaths.get(task.directory, 0) + 1
        if self.deaths[task.directory] >= DEATHS:
            write_error(task, f"its process was killed {DEATHS} times, perhaps for want of memory")
        self.reporter.say(f"  a worker died with {task.directory.name}; trying again")

    # -- telling of it ------------------------------------------------------------------------------------------------

    def write(self) -> Sweep:
        grid = self.grid
        state = Sweep(
            source=grid.source,
            fingerprint=grid.fingerprint,
            document=dict(grid.document),
            target=grid.tune.target.text if grid.tune else None,
            bound=grid.tune.bound.text if grid.tune and grid.tune.bound else None,
            groups=[self.group_state(group) for group in grid.groups],
        )
        write_sweep(grid.output, state)
        write_text(grid.output / TABLE_FILE, as_csv(state, grid.output))
        return state

    def group_state(self, group: Group) -> GroupState:
        trials, following = self.trials(group)
        tuned = following is None
        chosen = choose(trials) if trials and tuned else None
        changes = dict(chosen.changes) if chosen else {}
        cells = []
        for cell in group.cells:
            task = self.task(cell, changes, attacks=True)
            found = self.known(task) if tuned else None
            run = task.directory.relative_to(self.grid.output).as_posix()
            if found is None:
                cells.append(CellState(name=cell.name, seed=cell.seed, status="pending"))
            elif found.result is None:
                cells.append(CellState(name=cell.name, seed=cell.seed, status="failed", reason=found.error))
            else:
                status: CellStatus = "collapsed" if found.result.status == "collapsed" else "finished"
                reason = "; ".join(found.result.reasons)
                cells.append(CellState(name=cell.name, seed=cell.seed, status=status, run=run, reason=reason))
        return GroupState(
            name=group.name,
            axes=dict(group.axes),
            optimizer=group.optimizer,
            reached=None if chosen is None else chosen.verdict == MEETS,
            chosen=changes,
            trials=[
                TrialState(changes=dict(t.changes), verdict=t.verdict, distance=t.distance, run=t.run) for t in trials
            ],
            passed_over=candidates(self.grid.tune, group) - len(trials)
            if tuned and any(trial.verdict == BROKEN for trial in trials)
            else 0,
            cells=cells,
        )


def candidates(tune: Tune | None, group: Group) -> int:
    """How many candidates a group has at most."""
    values = tune.of(group.optimizer).values() if tune else ()
    if tune and any(isinstance(one, Range) for one in values):
        return tune.trials
    return math.prod(len(one) for one in values if not isinstance(one, Range)) if values else 0


def _counts(state: Sweep) -> str:
    counts = {status: len(state.cells(status)) for status in ("finished", "collapsed", "failed")}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)
