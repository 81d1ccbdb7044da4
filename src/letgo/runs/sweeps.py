"""`sweep.json`: what became of each group and cell of a sweep, for those who read it. The run directories are the
truth: this file is made from them, whole, each time a run is finished."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr

from letgo.core.errors import UserError
from letgo.core.files import write_json
from letgo.runs.documents import read_document
from letgo.runs.frames import table_of
from letgo.runs.results import Result, Shown, Strict, read_result

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


class Sweep(Shown):
    """The whole of `sweep.json`."""

    shown_by = "letgo.report.notebook_of_sweeps:html_of_sweep"

    schema_version: Literal[1] = Field(default=1, alias="schema")
    source: str
    fingerprint: str
    document: dict[str, Any]
    target: str | None = None
    bound: str | None = None
    groups: list[GroupState]
    _folder: Path | None = PrivateAttr(default=None)
    """Where it lies, once it was read or written."""

    @property
    def folder(self) -> Path:
        """Where it lies; a `UserError` of one that lies nowhere."""
        if self._folder is None:
            raise UserError("this sweep was neither read nor written: its runs are not known")
        return self._folder

    def __repr__(self) -> str:
        cells = [cell.status for group in self.groups for cell in group.cells]
        counts = ", ".join(f"{cells.count(status)} {status}" for status in dict.fromkeys(cells))
        return f"<Sweep {self._folder or self.source}: {len(cells)} cells, {counts}>"

    __str__ = __repr__

    def to_pandas(self) -> Any:
        """Every cell as a row of a `pandas.DataFrame`, as in `table.csv`."""
        return table_of(cell_rows(self, self.folder))

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
    sweep._folder = folder


def read_sweep(folder: Path) -> Sweep:
    """Read a sweep's file; a missing, broken or newer one is a `UserError`."""
    path = folder / SWEEP_FILE
    if not os.path.lexists(path):
        raise UserError(f"{folder} is no sweep: it has no {SWEEP_FILE}")
    sweep = read_document(path, Sweep, SWEEP_SCHEMA)
    sweep._folder = folder
    return sweep


def cell_rows(sweep: Sweep, folder: Path) -> list[dict[str, Any]]:
    """Every cell: its axes, what was tuned, status, metrics before and after, and what each attack left."""
    rows = []
    for group in sweep.groups:
        for cell in group.cells:
            row: dict[str, Any] = {**group.axes, "seed": cell.seed, "status": cell.status}
            if group.reached is not None:
                row["reached"] = group.reached
            row |= {f"tuned {key}": value for key, value in group.chosen.items()}
            if cell.run is not None:
                row |= _values(read_result(folder / cell.run))
            rows.append(row)
    return rows


def _values(result: Result) -> dict[str, Any]:
    row: dict[str, Any] = {"verdict": result.judgement.word} if result.judgement else {}
    if result.judgement and result.judgement.subjects:
        row |= {"subjects revealed": len(result.judgement.subjects.worst), "subjects": result.judgement.subjects.of}
    for stage, metrics in (("before", result.before), ("after", result.after)):
        row |= {f"{stage}.{name}": metric.value for name, metric in metrics.items()}
    for attack in result.attacks:
        row[f"kept({attack.label})"] = attack.kept
        row[f"bound({attack.label})"] = attack.bound
        row[f"outcome({attack.label})"] = attack.outcome
        row |= {f"{attack.label}.{name}": metric.value for name, metric in attack.metrics.items()}
    return row
