"""Running a sweep: what can run next is told from what lies in its folder, so a kill at any moment costs one cell's
last steps at most. The one place that decides; how a cell is run is `workers.py`'s."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

from letgo.core.errors import LetgoError, UserError
from letgo.core.files import write_text
from letgo.core.fingerprints import digest_of
from letgo.core.progress import Quiet, Reporter
from letgo.core.search import Range
from letgo.runs import index_for, record_run
from letgo.runs.results import RESULT_FILE, is_run, read_result
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
from letgo.sweep.backends import workers_for
from letgo.sweep.cell import ERROR_FILE, Outcome, Task, outcome, write_error
from letgo.sweep.grid import Cell, Grid, Group, with_setting
from letgo.sweep.locks import CLAIMS, STATE_LOCK, SWEEP_LOCK, has_locks, holder, locked
from letgo.sweep.part import Part
from letgo.sweep.table import TABLE_FILE, as_csv
from letgo.sweep.tuning import BROKEN, MEETS, Trial, Tune, choose, judge
from letgo.sweep.workers import Ending, Workers

PAUSE_SECONDS = 1.0
"""How long a cell that another process is at work on is left alone before it is asked for again."""
SEEN_SECONDS = 90.0
"""How long a network's file system may take to show what another machine wrote."""


def sweep(
    grid: Grid,
    *,
    resume: bool = False,
    retry_failed: bool = False,
    part: Part | None = None,
    reporter: Reporter | None = None,
) -> Sweep:
    """Run every cell of a grid: tune each group where the grid says so, then run its seeds and attack them.

    A cell that fails is recorded and the rest goes on; one that collapsed is not attacked. Each finished cell is kept
    whatever happens next: call again with `resume=True` to go on, on the same backend or another, which ends with the
    same table.

    Args:
        grid: as `read_grid` gives it.
        resume: go on with what lies in the output folder.
        retry_failed: try failed cells again.
        part: run these cells alone. Several parts may run at once, each in a process of its own; the index of runs is
            written by whoever then runs the whole sweep with `resume=True`.
        reporter: where progress goes.

    Raises:
        UserError: the folder holds another sweep, or one that is at work; or the backend has not what a cell needs.
    """
    reporter = reporter or Quiet()
    workers = workers_for(grid, reporter)
    folder = grid.output
    # Looked at in this order: another part's sweep may be begun between the two.
    inside = [path for path in folder.iterdir() if path.name[0] != "."] if folder.is_dir() else []
    if (folder / SWEEP_FILE).is_file():
        if not resume:
            raise UserError(f"{folder} holds a sweep; go on with it by --resume, or name another folder")
        if read_sweep(folder).fingerprint != grid.fingerprint:
            raise UserError(f"{folder} holds a sweep of another grid than {grid.source}; name another folder")
    elif inside:
        raise UserError(f"{folder} is not empty, and holds no sweep; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    if not has_locks(folder):
        reporter.say(f"  the file system of {folder} has no locks: see to it that one sweep at a time runs there")
    with locked(folder / SWEEP_LOCK, shared=part is not None) as mine:
        if not mine:
            raise UserError(f"another sweep is at work in {folder}; wait for it, or stop it")
        return _Execution(grid, part, reporter).run(workers, retry_failed)


class _Execution:
    def __init__(self, grid: Grid, part: Part | None, reporter: Reporter) -> None:
        self.grid, self.part, self.reporter = grid, part, reporter
        self.mine = part.cells(grid) if part else frozenset(cell.name for cell in grid.cells)
        self.groups = [group for group in grid.groups if any(cell.name in self.mine for cell in group.cells)]
        self.outcomes: dict[Path, Outcome] = {}
        self.deaths: dict[Path, int] = {}
        self.running: dict[Path, Task] = {}

    def run(self, workers: contextlib.AbstractContextManager[Workers], retry_failed: bool) -> Sweep:
        if retry_failed:
            self.forget_failed()
        self.record_found()
        if not self.waiting():
            return self.write()
        # The workers first: a folder in which nothing could be started is no sweep yet.
        with workers as opened:
            state = self.write()
            with self.reporter.task("sweep", self.size()) as progress:
                done = 0
                for task in self.completed(opened):
                    self.record(task)
                    state = self.write()
                    progress.describe(_counts(state))
                    now = self.size() - self.left()
                    progress.advance(max(now - done, 0))
                    done = now
        return state

    # -- the index ----------------------------------------------------------------------------------------------------

    def record(self, task: Task) -> None:
        """Put a run into the index. Of several parts none does: one file of SQLite has one machine that writes it."""
        if self.part is None and is_run(task.directory):
            record_run(task.directory, self.reporter.say)

    def record_found(self) -> None:
        """Put into the index what earlier sweeps of this folder ran and did not come to record."""
        found = sorted(path for path in (self.grid.output / RUNS_FOLDER).glob("*") if is_run(path))
        if self.part is None and found:
            try:
                problems = index_for(found[0]).record_all(found)
            except UserError as error:
                problems = [str(error)]
            for problem in problems:
                self.reporter.say(f"  not recorded: {problem}")

    def forget_failed(self) -> None:
        """Let failed runs of the cells that are to be run here, trials as well, be tried again."""
        for directory in (self.grid.output / RUNS_FOLDER).glob("*"):
            if not any(directory.name == name or directory.name.startswith(f"{name}-") for name in self.mine):
                continue
            with locked(self.grid.output / CLAIMS / directory.name) as free:
                if not free:
                    continue
                (directory / ERROR_FILE).unlink(missing_ok=True)
                if is_run(directory) and read_result(directory).status == "failed":
                    (directory / RESULT_FILE).unlink()

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
        return [self.task(cell, changes, attacks=True) for cell in group.cells if cell.name in self.mine]

    def waiting(self) -> list[Task]:
        return [task for group in self.groups for task in self.tasks(group) if self.known(task) is None]

    def size(self) -> int:
        """How many runs there are in all, at most: candidates count, and the chosen one's attacks."""
        return len(self.mine) + sum(candidates(self.grid.tune, group) for group in self.groups)

    def left(self) -> int:
        left = 0
        for group in self.groups:
            trials, following = self.trials(group)
            if following is not None:
                left += len(group.cells) + candidates(self.grid.tune, group) - len(trials)
            else:
                left += sum(self.known(task) is None for task in self.tasks(group))
        return left

    # -- doing it -----------------------------------------------------------------------------------------------------

    def completed(self, workers: Workers) -> Iterator[Task]:
        """Do everything, yielding each task when it is over."""
        later: dict[Path, float] = {}
        """When a task that another process is at work on is to be asked for again."""
        try:
            while True:
                ready = [task for task in self.waiting() if task.directory not in self.running]
                now = time.monotonic()
                for task in [task for task in ready if later.get(task.directory, 0.0) <= now][: workers.free()]:
                    workers.start(task)
                    self.running[task.directory] = task
                if not self.running:
                    if not ready:
                        return
                    time.sleep(PAUSE_SECONDS)
                    continue
                for ending in workers.ended(PAUSE_SECONDS if later else None):
                    task = self.running.pop(ending.task.directory)
                    if ending.how == "busy":
                        self.elsewhere(task, first=task.directory not in later)
                        later[task.directory] = time.monotonic() + PAUSE_SECONDS
                        continue
                    later.pop(task.directory, None)
                    if ending.how == "died":
                        self.died(ending)
                    else:
                        self.see(task)
                    yield task
        finally:
            # Of what is interrupted, what is a run already: its attacks were under way.
            for task in self.running.values():
                self.record(task)

    def elsewhere(self, task: Task, first: bool) -> None:
        if first:
            who = holder(task.claim) or "another machine"
            self.reporter.say(f"  {task.directory.name} is at work elsewhere ({who}): waiting for it")

    def see(self, task: Task) -> None:
        """Wait till a task's end is seen here: a network's file system shows it late."""
        limit = time.monotonic() + SEEN_SECONDS
        while self.known(task) is None:
            if time.monotonic() > limit:
                raise LetgoError(
                    f"{task.directory.name} was run, and {SEEN_SECONDS:.0f} s later its directory does not say so; is "
                    f"{self.grid.output} the same folder for all who run the sweep? --resume goes on"
                )
            # Reading a folder asks its server anew; asking for a file by name may be answered from memory.
            with contextlib.suppress(FileNotFoundError):
                os.listdir(task.directory)
            if self.known(task) is None:
                time.sleep(0.2)

    def died(self, ending: Ending) -> None:
        """The process that ran a task was lost."""
        directory = ending.task.directory
        self.deaths[directory] = self.deaths.get(directory, 0) + 1
        if self.deaths[directory] > self.grid.retries:
            times = "once" if self.deaths[directory] == 1 else f"{self.deaths[directory]} times"
            why = f" ({ending.why})" if ending.why else ""
            write_error(ending.task, f"its process was lost {times}{why}, perhaps for want of memory")
            return
        self.reporter.say(f"  a worker died with {directory.name} ({ending.why or 'killed'}); trying again")

    # -- telling of it ------------------------------------------------------------------------------------------------

    def write(self) -> Sweep:
        """Write the state and the table. Told from the directories under a lock, so that of several parts the one that
        writes last has seen most."""
        with locked(self.grid.output / STATE_LOCK, wait=True):
            return self._write()

    def _write(self) -> Sweep:
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
