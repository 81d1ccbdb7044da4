"""A sweep's table: one line a cell, from its run directories, without times, so that the same grid gives the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from letgo.core.files import csv_text
from letgo.report.comparison import Line
from letgo.report.load import LoadedRun
from letgo.runs.results import Result, read_result
from letgo.runs.sweeps import Sweep

TABLE_FILE = "table.csv"


def lines(sweep: Sweep, folder: Path) -> list[Line]:
    """A line for each group with a cell that ran."""
    made = []
    for group in sweep.groups:
        directories = [folder / cell.run for cell in group.cells if cell.run is not None]
        if directories:
            runs = tuple(LoadedRun(directory, read_result(directory)) for directory in directories)
            made.append(Line(group.name, group.optimizer, runs, group.reached))
    return made


def as_csv(sweep: Sweep, folder: Path) -> str:
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
    return csv_text(rows)


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
