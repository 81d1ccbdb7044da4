"""`sweep.json`: what became of each group and cell of a sweep, for those who read it. The run directories are the
truth: this file is made from them, whole, each time a run is finished."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from letgo.core.errors import UserError
from letgo.core.files import write_json
from letgo.runs.results import Strict, read_document

SWEEP_FILE = "sweep.json"
RUNS_FOLDER = "runs"
"""Where a sweep's runs lie, trials and cells alike, below its folder."""
SWEEP_SCHEMA = 1


def _below(run: str) -> str:
    path = PurePosixPath(run)
    if path.is_absolute() or ".." in path.parts or "\0" in run:
        raise ValueError("is no path below the sweep's folder")
    return run


RunPath = Annotated[str, AfterValidator(_below)]
CellStatus = Literal["pending", "finished", "collapsed", "failed"]


class CellState(Strict):
    """One cell: `run` is its directory below the sweep's folder."""

    name: str
    seed: int
    status: CellStatus
    run: RunPath | None = None
    reason: str = ""

    def model_post_init(self, _: Any) -> None:
        if self.run is None and self.status in ("finished", "collapsed"):
            raise ValueError(f"a cell that {self.status} names its run")


class TrialState(Strict):
    """One candidate of the tuning: what it changed, and `reached`, `missed`, `collapsed` or `failed`."""

    changes: dict[str, Any]
    verdict: str
    distance: float
    run: str


class GroupState(Strict):
    """Cells that differ by their seed alone. `reached` says whether the tuning's target was; None without tuning."""

    name: str
    axes: dict[str, Any]
    optimizer: str
    reached: bool | None = None
    chosen: dict[str, Any] = Field(default_factory=dict)
    trials: list[TrialState] = Field(default_factory=list)
    passed_over: int = 0
    """Candidates not run, since a smaller learning rate had collapsed."""
    cells: list[CellState] = Field(default_factory=list)


class Sweep(Strict):
    """The whole of `sweep.json`."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    source: str
    fingerprint: str
    document: dict[str, Any]
    target: str | None = None
    bound: str | None = None
    groups: list[GroupState]

    def unreached(self) -> list[GroupState]:
        """Groups that never reached the target: they are not comparable with the others."""
        return [group for group in self.groups if group.reached is False]

    def cells(self, status: CellStatus) -> list[CellState]:
        return [cell for group in self.groups for cell in group.cells if cell.status == status]

    def run_directories(self, folder: Path) -> list[Path]:
        """The directories of the cells that ran, without the tuning's other trials."""
        return [folder / cell.run for group in self.groups for cell in group.cells if cell.run is not None]


def write_sweep(folder: Path, sweep: Sweep) -> None:
    write_json(folder / SWEEP_FILE, sweep.model_dump(mode="json", by_alias=True))


def read_sweep(folder: Path) -> Sweep:
    """Read a sweep's file; a missing, broken or newer one is a `UserError`."""
    path = folder / SWEEP_FILE
    if not os.path.lexists(path):
        raise UserError(f"{folder} is no sweep: it has no {SWEEP_FILE}")
    return read_document(path, Sweep, SWEEP_SCHEMA)
