"""A run's analyses for the page and the terminal: sentences, drawings with their tables, and tables without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from letgo.analysis.records import Certificate, Connectivity, Landscape, Sharpness, exact_percent
from letgo.report import analysis_figures as drawn
from letgo.report.chart import Figure
from letgo.report.numbers import MISSING, number, percent, words
from letgo.report.table import is_share
from letgo.runs.results import Metrics

MOST_ROWS = 15
"""A longer table is folded."""
MOST_PATHS = 6
"""Up to so many lines between models are drawn; all are in the table."""


@dataclass(frozen=True)
class Table:
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False


@dataclass(frozen=True)
class AnalysisView:
    """One analysis as the template sees it."""

    identifier: str
    title: str
    sentences: Sequence[str]
    lists: Sequence[tuple[str, Sequence[str]]] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    settings: str = ""
    notes: Sequence[str] = field(default_factory=list)


def views(entries: Sequence[Any], anchor: str) -> list[AnalysisView]:
    """A view of each analysis; its drawings' identifiers begin with `anchor`."""
    return [view(entry, f"{anchor}-analysis-{place}") for place, entry in enumerate(entries, 1)]


def view(entry: Any, identifier: str) -> AnalysisView:
    makers: dict[str, Any] = {
        "connectivity": _connectivity,
        "landscape": _landscape,
        "sharpness": _sharpness,
        "certificate": _certificate,
    }
    made: AnalysisView = makers[entry.kind](entry, identifier)
    return made


def in_text(entry: Any) -> list[str]:
    """The analysis as lines for a terminal."""
    seen = view(entry, "analysis")
    lines = [f"{seen.title}: {entry.subject}", *(f"  {sentence}" for sentence in seen.sentences)]
    for title, items in seen.lists:
        lines += ["", f"{title}:", *(f"  - {item}" for item in items)]
    for table in seen.tables:
        lines += ["", table.caption, *_aligned([list(table.header), *map(list, table.rows)])]
    return [*lines, "", *(f"note: {note}" for note in seen.notes), f"settings: {seen.settings}"]


def _connectivity(entry: Connectivity, identifier: str) -> AnalysisView:
    keys = [key for key in entry.paths[0].barriers if key.endswith("_loss")]
    sentences = []
    for path in entry.paths[:MOST_PATHS]:
        told = [
            f"the {words(key)} rises {number(path.barriers[key].rise)} nats above the line (at a = "
            f"{path.barriers[key].rise_at:.2g})"
            if path.barriers[key].rise > 0
            else f"the {words(key)} never rises above the line"
            for key in keys
            if key in path.barriers
        ]
        lost = f" At {len(path.lost)} points between them the model is broken." if path.lost else ""
        sentences.append(
            f"From {path.first} to {path.second}, ‖Δθ‖ = {number(path.distance)} "
            f"({_share(path.relative_distance)} of ‖θ‖) apart: {' and '.join(told)}.{lost}"
        )
    rows = []
    for path in entry.paths:
        for key, found in path.barriers.items():
            first, last = path.points[0].values[key], path.points[-1].values[key]
            rows.append(
                [
                    f"{path.first} → {path.second}",
                    words(key),
                    f"{number(first.value)} (n {first.n:,})",
                    f"{number(last.value)} (n {last.n:,})",
                    f"{number(found.rise)} at a = {found.rise_at:.2g}",
                    f"{number(found.fall)} at a = {found.fall_at:.2g}",
                ]
            )
    figures: list[Figure | None] = []
    for place, path in enumerate(entry.paths[:MOST_PATHS]):
        figures += [
            drawn.path_losses(path, f"{identifier}-path-{place}-losses"),
            drawn.path_scores(path, f"{identifier}-path-{place}-scores"),
        ]
    return AnalysisView(
        identifier,
        "Linear mode connectivity",
        [
            *sentences,
            "The barrier is the largest rise of a loss over the straight line between its values at the two ends; "
            "near 0, both models lie in one basin.",
        ],
        tables=[
            Table(
                "Largest rise over, and fall under, the line between the ends",
                ["from → to", "quantity", "at a = 0", "at a = 1", "rise", "fall"],
                rows,
                folded=len(rows) > MOST_ROWS,
            )
        ],
        figures=[figure for figure in figures if figure is not None],
        settings=_settings(entry),
        notes=entry.notes,
    )


def _landscape(entry: Landscape, identifier: str) -> AnalysisView:
    here = next((p.losses for p in entry.points if not any(p.at)), None)
    sentences = []
    for axis in entry.axes:
        what = {
            "random": "a filter-normalised random direction",
            "attack": "the direction in which that attack moved the weights, which it leaves at 1",
            "model": "the direction toward that model, which lies at 1",
        }[axis.toward]
        sentences.append(f"One unit of {axis.name} is {number(axis.norm)} in weight space: {what}.")
    if entry.cosine is not None:
        sentences.append(f"The cosine between the two directions is {number(entry.cosine)}.")
    for key in entry.points[0].losses:
        values = [p.losses[key] for p in entry.points]
        known = [v for v in values if v is not None]
        centre = here.get(key) if here else None
        if known:
            at = f"{number(centre)} at the run, " if centre is not None else ""
            sentences.append(
                f"The {words(key)} is {at}from {number(min(known))} to {number(max(known))} in the picture."
            )
        if len(known) < len(values):
            sentences.append(f"At {len(values) - len(known)} of {len(values)} points the {words(key)} is not finite.")
    figures = (
        [drawn.line_landscape(entry, identifier)]
        if len(entry.axes) == 1
        else [drawn.plane_landscape(entry, key, f"{identifier}-{key}") for key in entry.points[0].losses]
    )
    return AnalysisView(
        identifier,
        "Loss landscape",
        sentences,
        figures=[figure for figure in figures if figure is not None],
        settings=_settings(entry),
        notes=entry.notes,
    )


def _sharpness(entry: Sharpness, identifier: str) -> AnalysisView:
    last = entry.radii[-1]
    sentences = []
    if "forget_loss" in last.fall:
        sentences.append(
            f"A change of size {number(last.radius)} ({_share(last.relative)} of ‖θ‖) in the worst direction found "
            f"lowers the forget loss from {number(entry.base['forget_loss'])} to "
            f"{number(entry.base['forget_loss'] - last.fall['forget_loss'])}: what an attacker gains who has the "
            "forget set."
        )
    if "retain_loss" in last.rise:
        sentences.append(
            f"One of the same size raises the retain loss from {number(entry.base['retain_loss'])} to "
            f"{number(entry.base['retain_loss'] + last.rise['retain_loss'])}."
        )
    for key, found in entry.trace.items():
        sentences.append(f"The Hessian’s trace of the {words(key)} is {_estimate(found)}.")
    sentences.append("The worst cases are what a few steps of ascent found: the true ones are at least as large.")
    header = ["ρ", "of ‖θ‖"]
    rows = [[number(r.radius), _share(r.relative)] for r in entry.radii]
    for key in entry.base:
        header += [f"{words(key)}: worst rise", "worst fall", "average"]
        for row, r in zip(rows, entry.radii, strict=True):
            row += [_signed(r.rise[key]), _signed(-r.fall[key]), _estimate(r.average[key])]
    return AnalysisView(
        identifier,
        "Sharpness",
        sentences,
        tables=[Table("Change of each loss within a radius ρ", header, rows)],
        figures=[
            drawn.sharpness_worst(entry, f"{identifier}-worst"),
            drawn.sharpness_average(entry, f"{identifier}-average"),
        ],
        settings=_settings(entry),
        notes=entry.notes,
    )


def _certificate(entry: Certificate, identifier: str) -> AnalysisView:
    rows = []
    for one in entry.smoothed:
        together = one.together
        rows.append(
            [
                number(one.sigma),
                number(one.noise_norm),
                f"{together.revealed} of {together.draws}",
                number(together.p_lower),
                number(together.radius),
                _utility(one.utility),
                "no: " + "; ".join(one.collapsed) if one.collapsed else "yes" if one.utility else MISSING,
            ]
        )
    revealed = f", {entry.plain_revealed} of {entry.asked} revealed" if entry.smoothed[0].questions else ""
    kept = Table(
        f"Smoothed models, with confidence {exact_percent(1 - entry.alpha)} for all of them together; without noise: "
        f"{_utility(entry.plain_utility)}{revealed}",
        ["σ", "noise σ√d", "draws that reveal", "lower bound of not revealing", "R", "utility at σ", "still a model"],
        rows,
    )
    best = max(entry.smoothed, key=lambda one: one.together.radius)
    reach = {r.name: r for r in best.reach}
    against = [
        [
            one.name,
            number(one.value),
            one.note or MISSING,
            "yes" if one.name in reach and reach[one.name].inside else "no" if one.name in reach else MISSING,
            _at_most(reach[one.name].reveals_at_most) if one.name in reach else MISSING,
        ]
        for one in entry.displacements
    ]
    tables = [kept]
    if against:
        tables.append(
            Table(
                f"Displacements against the largest radius, R = {number(best.together.radius)} at σ = "
                f"{number(best.sigma)}",
                ["what moved the weights", "‖Δθ‖", "from", "within R", "chance to reveal at most"],
                against,
            )
        )
    for one in entry.smoothed:
        if one.questions:
            tables.append(
                Table(
                    f"Each question by itself at σ = {number(one.sigma)}",
                    ["question", "without noise", "draws that reveal", "R"],
                    [
                        [
                            q.question,
                            "revealed" if q.plain else "not revealed",
                            f"{q.bound.revealed} of {q.bound.draws}",
                            number(q.bound.radius) if q.bound.radius > 0 else "none",
                        ]
                        for q in one.questions
                    ],
                    folded=True,
                )
            )
    figure = drawn.reach(entry, identifier)
    return AnalysisView(
        identifier,
        "Certificate",
        [f"A question counts as revealed when {entry.criterion}; the set, when {entry.event}."]
        if entry.smoothed[0].questions
        else [f"The set counts as revealed when {entry.event}."],
        lists=[("What is certified", entry.certified), ("What is not", entry.not_certified)],
        tables=tables,
        figures=[figure] if figure is not None else [],
        settings=_settings(entry),
        notes=entry.notes,
    )


def _utility(metrics: Metrics) -> str:
    shown = [key for key in metrics if is_share(key, "retain_") or key == "general_perplexity"]
    chosen = shown or list(metrics)[:2]
    return ", ".join(f"{words(key)} {number(metrics[key].value)}" for key in chosen) or "none measured"


def _settings(entry: Any) -> str:
    told = [f"{words(key)} {_plain(value)}" for key, value in entry.settings.items() if value is not None]
    sets = ", ".join(f"{count:,} rows for the {words(name)}" for name, count in entry.rows.items())
    return "; ".join([*told, *([sets] if sets else []), f"{entry.parameters:,} weights"])


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _estimate(found: Any) -> str:
    error = f" ± {number(found.standard_error)}" if found.standard_error is not None else ""
    return f"{_signed(found.value)}{error} (n {found.n})"


def _signed(value: float) -> str:
    return number(value) if value <= 0 else f"+{number(value)}"


def _share(value: float) -> str:
    return percent(value) if value >= 0.01 else f"{number(value * 100)} %"


def _at_most(value: float) -> str:
    return "1 (nothing is said)" if value >= 0.995 else number(value)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    # A prompt may have several lines, a table's cell has one.
    rows = [[" ".join(cell.split()) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "  " + "─" * min(max(map(len, lines)) - 2, 110), *lines[1:]]
