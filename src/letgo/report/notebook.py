"""What a notebook shows of a result, a run and a sweep: the words of the page, one table, and figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from letgo.core.terminal import visible
from letgo.report import figures
from letgo.report.chart import Figure, tag
from letgo.report.numbers import MISSING, interval, number, percent
from letgo.report.table import attack_labels, columns, rows, short_labels
from letgo.report.verdict import verdict
from letgo.report.wording import wording_caution
from letgo.runs.results import Result, read_result
from letgo.runs.sweeps import Sweep


def html_of(result: Result, history: Sequence[Mapping[str, Any]] = ()) -> str:
    """A result as HTML: verdict, table, figures (of the training too, where its history is given)."""
    judged, metrics = verdict(result), columns([result])
    caution = wording_caution(result)
    sentences = [*judged.sentences, *([caution] if caution else [])]
    head = ["model", *(column.title for column in metrics), "kept", "outcome"]
    body = []
    for row in rows(result):
        measured = [row.metrics.get(column.key) for column in metrics]
        cells = [f"{number(m.value)} ({interval(m)})" if m else MISSING for m in measured]
        body.append([("after " if row.attack else "") + row.label, *cells, row.kept or MISSING, row.outcome or MISSING])
    drawn = [
        figures.trade_off(result, "trade"),
        figures.training(history, "loss"),
        figures.looks(history, "looks"),
        figures.attacked(result, "kept"),
    ]
    return _html(f"{judged.mark} {judged.headline}", sentences, head, body, drawn)


def html_of_sweep(sweep: Sweep) -> str:
    """A sweep as HTML: a row for each group with its means, and every run that is there in one figure."""
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
    names = list(results)
    drawn = figures.all_runs(list(results.values()), names, "all") if results else None
    target = [f"Target: {sweep.target}" + (f", with {sweep.bound}" if sweep.bound else "")] if sweep.target else []
    return _html(f"Sweep {sweep.folder}", target, head, body, [drawn])


def _ran(sweep: Sweep) -> list[Any]:
    return [cell for group in sweep.groups for cell in group.cells if cell.run is not None]


def _mean(values: Iterable[float | None], *, share: bool = False) -> str:
    known = [value for value in values if value is not None]
    return (percent if share else number)(sum(known) / len(known)) if known else MISSING


def _html(
    title: str,
    sentences: Sequence[str],
    head: Sequence[str],
    body: Sequence[Sequence[str]],
    drawn: Sequence[Figure | None],
) -> str:
    """The parts of what a notebook shows; all text is escaped."""
    parts = [tag("p", tag("b", visible(title)))]
    if sentences:
        parts.append(tag("ul", *(tag("li", visible(sentence)) for sentence in sentences)))
    lines = [tag("tr", *(tag("th", visible(name)) for name in head))]
    lines += [tag("tr", *(tag("td", visible(cell)) for cell in row)) for row in body]
    parts.append(tag("table", *lines))
    parts += [Markup(figure._repr_html_()) for figure in drawn if figure is not None]
    return str(tag("div", *parts))
