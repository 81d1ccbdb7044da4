"""A sweep's table: one line a cell, from its run directories, without times, so that the same grid gives the same."""

from __future__ import annotations

from pathlib import Path

from letgo.core.files import csv_text
from letgo.report.comparison import Line
from letgo.report.load import LoadedRun
from letgo.runs.results import read_result
from letgo.runs.sweeps import Sweep, cell_rows

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
    """Every cell, a line each (`letgo.runs.sweeps.cell_rows`)."""
    return csv_text(cell_rows(sweep, folder))
