"""What a notebook shows of a result and of a run: the words of the page, one table, and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from letgo.core.terminal import visible
from letgo.report import figures
from letgo.report.chart import Figure
from letgo.report.numbers import MISSING, interval, number
from letgo.report.svg import tag
from letgo.report.table import columns, rows
from letgo.report.verdict import verdict
from letgo.report.wording import wording_caution
from letgo.runs.results import Result


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
    return html_page(f"{judged.mark} {judged.headline}", sentences, head, body, drawn)


def html_page(
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
