"""A sweep's table: one line a cell, from its run directories, without times, so that the same grid gives the same."""

from __future__ import annotations

import csv
import io
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from letgo.runs.results import Result, read_result
from letgo.runs.sweeps import GroupState, Sweep

TABLE_FILE = "table.csv"


@dataclass(frozen=True)
class Line:
    """A group over its seeds: means, with the least and largest beside them, and what each attack left."""

    group: GroupState
    results: tuple[Result, ...]

    def metric(self, name: str) -> tuple[float, float, float] | None:
        """Mean, least and largest over the seeds after unlearning; None where it was not scored."""
        values = [result.after[name].value for result in self.results if name in result.after]
        return (statistics.fmean(values), min(values), max(values)) if values else None

    def kept(self, label: str) -> tuple[float, float] | None:
        """Mean and least of what an attack left, over the seeds."""
        values = [a.kept for result in self.results for a in result.attacks if a.label == label]
        return (statistics.fmean(values), min(values)) if values else None


def lines(sweep: Sweep, folder: Path) -> list[Line]:
    """A line for each group with a cell that ran."""
    found = []
    for group in sweep.groups:
        results = tuple(read_result(folder / cell.run) for cell in group.cells if cell.run is not None)
        if results:
            found.append(Line(group, results))
    return found


def labels(found: list[Line]) -> list[str]:
    """The attacks' labels, in order of meeting."""
    return list(dict.fromkeys(a.label for line in found for result in line.results for a in result.attacks))


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
                row |= _numbers(read_result(folder / cell.run))
            rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _numbers(result: Result) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for stage, metrics in (("before", result.before), ("after", result.after)):
        row |= {f"{stage}.{name}": metric.value for name, metric in metrics.items()}
    for attack in result.attacks:
        row[f"kept({attack.label})"] = attack.kept
        row[f"survived({attack.label})"] = attack.survived
        row |= {f"{attack.label}.{name}": metric.value for name, metric in attack.metrics.items()}
    return row
