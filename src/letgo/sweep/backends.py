"""The workers of a grid: this process, several of this machine, or a Ray cluster's."""

from __future__ import annotations

from contextlib import AbstractContextManager

from letgo.core.progress import Reporter
from letgo.sweep.grid import Grid
from letgo.sweep.local import InProcess, Processes
from letgo.sweep.resources import Resources, places
from letgo.sweep.workers import Workers


def workers_for(grid: Grid, reporter: Reporter) -> AbstractContextManager[Workers]:
    """The grid's backend. What can be told to be missing before anything is started is a `UserError` here."""
    if grid.backend == "ray":
        from letgo.sweep.ray import RayWorkers

        return RayWorkers(grid, reporter)
    slots = places(grid.resources, grid.workers or 1)
    if len(slots) < (grid.workers or 1):
        reporter.say(f"  {len(slots)} cells at a time: this machine has room for no more of {grid.resources} each")
    if len(slots) == 1 and grid.resources == Resources():
        return InProcess()
    return Processes(slots, grid.resources.cpus)
