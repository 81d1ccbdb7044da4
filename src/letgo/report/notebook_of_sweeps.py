"""What a notebook shows of a sweep: a table of its groups, and the first figures of its page."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from letgo.report import overview
from letgo.report.load import LoadedRun
from letgo.report.notebook import html_page
from letgo.report.numbers import MISSING, number, percent
from letgo.report.table import attack_labels, columns, short_labels
from letgo.runs.results import read_result
from letgo.runs.sweeps import Sweep


def html_of_sweep(sweep: Sweep) -> str:
    """A sweep as HTML: a row for each group with its means, and the figures of the page of many runs."""
    results = {cell.name: read_result(sweep.folder / cell.run) for cell in _ran(sweep)}
    metrics, labels = (columns(results.values()), attack_labels(results.values())) if results else ([], [])
    short = short_labels(labels)
    head = ["group", "cells", *(column.title for column in metrics), *(f"kept after {short[each]}" for each in labels)]
    body = []
    for group in sweep.groups:
        mine = [results[cell.name] for cell in group.cells if cell.name in results]
        statuses = [cell.status for cell in group.cells]
        counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
        cells = [_mean(r.after[c.key].value for r in mine if c.key in r.after) for c in metrics]
        for label in labels:
            cells.append(_mean((a.kept for r in mine for a in r.attacks if a.label == label), share=True))
        name = group.name + (" (never reached the target)" if group.reached is False else "")
        body.append([name, counts, *cells])
    runs = [LoadedRun(sweep.folder / cell.run, results[cell.name]) for cell in _ran(sweep)]
    drawn = overview.figures_of(runs, [sweep.folder]) if runs else []
    target = [f"Target: {sweep.target}" + (f", with {sweep.bound}" if sweep.bound else "")] if sweep.target else []
    return html_page(f"Sweep {sweep.folder}", target, head, body, drawn)


def _ran(sweep: Sweep) -> list[Any]:
    return [cell for group in sweep.groups for cell in group.cells if cell.run is not None]


def _mean(values: Iterable[float | None], *, share: bool = False) -> str:
    known = [value for value in values if value is not None]
    return (percent if share else number)(sum(known) / len(known)) if known else MISSING
