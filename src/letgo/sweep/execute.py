"""Running a sweep: what can run next follows from the files in its folder, so a kill at any moment costs one cell's
last steps at most. How a cell is run is the matter of `workers.py`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from letgo.attacks.engine.base import Victim
from letgo.attacks.engine.spec import check_attacks, plan_attacks
from letgo.benchmarks import OWN_ROWS, benchmark_of
from letgo.core.errors import LetgoError, UserError
from letgo.core.files import write_text
from letgo.core.fingerprints import digest_of
from letgo.core.locks import has_locks, holder, locked
from letgo.core.progress import Reporter, usual
from letgo.runs import index_for, record_run
from letgo.runs.results import RESULT_FILE, is_run, read_result
from letgo.runs.sweeps import RUNS_FOLDER, SWEEP_FILE, CellState, GroupState, Sweep, TrialState, read_sweep, write_sweep
from letgo.sweep.cell import ERROR_FILE, CellOutcome, outcome, write_error
from letgo.sweep.grid import Cell, Grid, Group, SweepPart, with_setting
from letgo.sweep.local import InProcess, Processes
from letgo.sweep.resources import Resources, device_slots
from letgo.sweep.table import TABLE_FILE, as_csv
from letgo.sweep.tuning import BROKEN, MEETS, choose, judge
from letgo.sweep.workers import CLAIMS, CellTask, Ending, Workers

SWEEP_LOCK = ".sweep.lock"
"""In a sweep's folder: held alone by a whole sweep, shared by those that run a part of its cells."""
STATE_LOCK = ".state.lock"
"""In a sweep's folder: held while its state is read from the run directories and written."""
PAUSE_SECONDS = 1.0
"""How long a cell that another process is at work on is left alone before it is asked for again."""
SEEN_SECONDS = 90.0
"""How long a network's file system may take to show what another machine wrote."""


def sweep(
    grid: Grid,
    *,
    resume: bool = False,
    retry_failed: bool = False,
    part: SweepPart | None = None,
    reporter: Reporter | None = None,
) -> Sweep:
    """Run every cell of a grid: tune each group where the grid says so, then run its seeds and attack them.

    A cell that fails is recorded and the rest goes on; one that collapsed is not attacked. Each finished cell is kept
    whatever happens next: call again with `resume=True` to go on, on any backend, which ends with the same table.

    Args:
        resume: go on with what lies in the output folder.
        retry_failed: try failed cells again.
        part: run these cells alone. Several parts may run at once, each in a process of its own; the index of runs is
            written by whoever then runs the whole sweep with `resume=True`.
        reporter: where progress goes.

    Raises:
        UserError: the folder holds another sweep, or one that is at work; or the backend has not what a cell needs.
    """
    reporter = usual(reporter)
    _check_attacks(grid)
    workers, folder = _workers(grid, reporter), grid.output
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


def _forget_failed_result(directory: Path) -> None:
    """Remove a failed run's result. One that can't be read is kept under another name."""
    try:
        if read_result(directory).status == "failed":
            (directory / RESULT_FILE).unlink()
    except UserError:
        os.replace(directory / RESULT_FILE, directory / f"{RESULT_FILE}.unreadable")


def _check_attacks(grid: Grid) -> None:
    """Raise a `UserError` where an attack can't be made on some cell's data. Cells of the same data are one."""
    keys = ("benchmark", *OWN_ROWS, "template", "eval_limit")
    data = {repr([cell.settings.get(key) for key in keys]): cell.settings for cell in grid.cells}
    for settings in data.values() if grid.attacks else ():
        limit, original = settings.get("eval_limit"), settings.get("model")
        check_attacks(plan_attacks(grid.attacks), Victim("", benchmark_of(settings), limit=limit, original=original))


def _workers(grid: Grid, reporter: Reporter) -> Workers:
    """The workers of the grid's backend. What is missing, as far as it shows before anything is started, is a
    `UserError` here."""
    if grid.backend == "ray":
        from letgo.sweep.ray import RayWorkers

        return RayWorkers(grid, reporter)
    slots = device_slots(grid.resources, grid.workers or 1)
    if len(slots) < (grid.workers or 1):
        reporter.say(f"  {len(slots)} cells at a time: this machine has room for no more of {grid.resources} each")
    if len(slots) == 1 and grid.resources == Resources():
        return InProcess()
    return Processes(slots, grid.resources.cpus)


class _Execution:
    def __init__(self, grid: Grid, part: SweepPart | None, reporter: Reporter) -> None:
        self.grid, self.part, self.reporter = grid, part, reporter
        self.mine = part.cells(grid) if part else frozenset(cell.name for cell in grid.cells)
        self.groups = [group for group in grid.groups if any(cell.name in self.mine for cell in group.cells)]
        self.runs = grid.output / RUNS_FOLDER
        self.outcomes: dict[Path, CellOutcome] = {}
        self.deaths: dict[Path, int] = {}
        self.running: dict[Path, CellTask] = {}

    def run(self, workers: Workers, retry_failed: bool) -> Sweep:
        if retry_failed:
            self.forget_failed()
        self.record_earlier()
        if not self.waiting():
            return self.write()
        # The workers first: a folder in which nothing could be started is no sweep yet.
        with workers:
            state, done = self.write(), 0
            with self.reporter.task("sweep", self.size()) as progress:
                for task in self.completed(workers):
                    self.record(task)
                    state = self.write()
                    counts = {status: len(state.cells(status)) for status in ("finished", "collapsed", "failed")}
                    progress.describe(", ".join(f"{count} {status}" for status, count in counts.items() if count))
                    now = self.size() - self.left()
                    progress.advance(max(now - done, 0))
                    done = now
        return state

    # -- the index ----------------------------------------------------------------------------------------------------

    def record(self, task: CellTask) -> None:
        """Put a run into the index. Of several parts none does: one file of SQLite has one machine that writes it."""
        if self.part is None and is_run(task.directory):
            record_run(task.directory, self.reporter.say)

    def record_earlier(self) -> None:
        """Put into the index what earlier sweeps of this folder ran and did not come to record."""
        directories = sorted(path for path in self.runs.glob("*") if is_run(path))
        if self.part is None and directories:
            try:
                problems = index_for(directories[0]).record_all(directories)
            except UserError as error:
                problems = [str(error)]
            for problem in problems:
                self.reporter.say(f"  not recorded: {problem}")

    def forget_failed(self) -> None:
        """Let failed runs of the cells that are to be run here, trials as well, be tried again."""
        for directory in self.runs.glob("*"):
            if not any(directory.name == name or directory.name.startswith(f"{name}-") for name in self.mine):
                continue
            with locked(self.grid.output / CLAIMS / directory.name) as free:
                if not free:
                    continue
                (directory / ERROR_FILE).unlink(missing_ok=True)
                if is_run(directory):
                    _forget_failed_result(directory)

    # -- what there is to do ------------------------------------------------------------------------------------------

    def task(self, cell: Cell, changes: Mapping[str, Any], *, trial: bool = False) -> CellTask:
        """A cell with the changes that its group's tuning chose; or one candidate of the tuning, without attacks."""
        return CellTask(
            self.runs / (f"{cell.name}-{digest_of(changes)[:6]}" if changes else cell.name),
            with_setting({"save_total_limit": 1} | dict(cell.settings), changes),
            () if trial else self.grid.attacks,
            (f"sweep:{self.grid.output.resolve().name}",),
        )

    def known(self, task: CellTask) -> CellOutcome | None:
        """What is known of a task; what is known for good is remembered."""
        known = self.outcomes.get(task.directory)
        if known is None or (task.attacks and known.result is not None):
            known = outcome(task)
            if known is not None:
                self.outcomes[task.directory] = known
        return known

    def trials(self, group: Group) -> tuple[list[TrialState], CellTask | None]:
        """The trials of a group that are done, and the one that comes next; None when tuning is over."""
        trials: list[TrialState] = []
        tune = self.grid.tune
        while tune is not None and (changes := tune.next(group.optimizer, trials)) is not None:
            task = self.task(group.cells[0], changes, trial=True)
            known = self.known(task)
            if known is None:
                return trials, task
            run = self.relative(task)
            if known.result is None:
                trials.append(TrialState(changes=changes, verdict="failed", distance=1e6, run=run))
            else:
                trials.append(judge(tune, changes, run, known.result))
        return trials, None

    def relative(self, task: CellTask) -> str:
        return task.directory.relative_to(self.grid.output).as_posix()

    def tasks(self, group: Group) -> list[CellTask]:
        """What a group's cells are, once it is tuned; until then the next trial alone."""
        trials, following = self.trials(group)
        if following is not None:
            return [following]
        changes = choose(trials).changes if trials else {}
        return [self.task(cell, changes) for cell in group.cells if cell.name in self.mine]

    def waiting(self) -> list[CellTask]:
        return [task for group in self.groups for task in self.tasks(group) if self.known(task) is None]

    def size(self) -> int:
        """How many runs there are in all, at most: candidates count, and the chosen one's attacks."""
        return len(self.mine) + sum(map(self.grid.candidates, self.groups))

    def left(self) -> int:
        left = 0
        for group in self.groups:
            trials, following = self.trials(group)
            if following is not None:
                left += len(group.cells) + self.grid.candidates(group) - len(trials)
            else:
                left += sum(self.known(task) is None for task in self.tasks(group))
        return left

    # -- doing it -----------------------------------------------------------------------------------------------------

    def completed(self, workers: Workers) -> Iterator[CellTask]:
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
                        if task.directory not in later:
                            who = holder(task.claim) or "another machine"
                            self.reporter.say(f"  {task.directory.name} is at work elsewhere ({who}): waiting for it")
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

    def see(self, task: CellTask) -> None:
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
        """Count the loss of the process that ran a task; give the task up after too many."""
        directory = ending.task.directory
        deaths = self.deaths[directory] = self.deaths.get(directory, 0) + 1
        if deaths > self.grid.retries:
            times = "once" if deaths == 1 else f"{deaths} times"
            why = f" ({ending.why})" if ending.why else ""
            write_error(ending.task, f"its process was lost {times}{why}, perhaps for want of memory")
        else:
            self.reporter.say(f"  a worker died with {directory.name} ({ending.why or 'killed'}); trying again")

    # -- its state ----------------------------------------------------------------------------------------------------

    def write(self) -> Sweep:
        """Write the state and the table. Read from the directories under a lock, so that of several parts the one that
        writes last has seen most."""
        grid, tune = self.grid, self.grid.tune
        with locked(grid.output / STATE_LOCK, wait=True):
            state = Sweep(
                source=grid.source,
                fingerprint=grid.fingerprint,
                document=dict(grid.document),
                target=tune.target.text if tune else None,
                bound=tune.bound.text if tune and tune.bound else None,
                groups=[self.group_state(group) for group in grid.groups],
            )
            write_sweep(grid.output, state)
            write_text(grid.output / TABLE_FILE, as_csv(state, grid.output))
        return state

    def group_state(self, group: Group) -> GroupState:
        trials, following = self.trials(group)
        tuned = following is None
        chosen = choose(trials) if trials and tuned else None
        changes = chosen.changes if chosen else {}
        passed_over = 0
        if tuned and any(trial.verdict == BROKEN for trial in trials):
            passed_over = self.grid.candidates(group) - len(trials)
        return GroupState(
            name=group.name,
            axes=dict(group.axes),
            optimizer=group.optimizer,
            reached=None if chosen is None else chosen.verdict == MEETS,
            chosen=changes,
            trials=trials,
            passed_over=passed_over,
            cells=[self.cell_state(cell, self.task(cell, changes) if tuned else None) for cell in group.cells],
        )

    def cell_state(self, cell: Cell, task: CellTask | None) -> CellState:
        known = self.known(task) if task else None
        if task is None or known is None:
            return CellState(name=cell.name, seed=cell.seed, status="pending")
        if known.result is None:
            return CellState(name=cell.name, seed=cell.seed, status="failed", reason=known.error)
        status, reason = known.result.status, "; ".join(known.result.reasons)
        return CellState(name=cell.name, seed=cell.seed, status=status, run=self.relative(task), reason=reason)
