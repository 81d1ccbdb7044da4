"""A run's analyses for the page and the terminal: sentences, drawings with their tables, and tables without."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from letgo.analysis.records import (
    Certificate,
    Connectivity,
    Depth,
    Landscape,
    MeanEstimate,
    Sharpness,
    Spectrum,
    exact_percent,
)
from letgo.report import analysis_figures as figures
from letgo.report.chart import Figure
from letgo.report.numbers import MISSING, number, percent, words
from letgo.report.table import is_share
from letgo.runs.results import Metrics

MOST_ROWS = 15
"""A longer table is folded."""
MOST_PATHS = 6
"""Up to so many lines between models are drawn; all are in the table."""


@dataclass(frozen=True)
class AnalysisTable:
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False


@dataclass(frozen=True)
class AnalysisView:
    """One analysis as the template sees it."""

    entry: Any
    identifier: str
    title: str
    sentences: Sequence[str]
    figures: Sequence[Figure]
    tables: Sequence[AnalysisTable] = ()
    lists: Sequence[tuple[str, Sequence[str]]] = ()

    @property
    def settings(self) -> str:
        parts = [f"{words(key)} {_plain(value)}" for key, value in self.entry.settings.items() if value is not None]
        if rows := self.entry.rows:
            parts.append(", ".join(f"{count:,} rows for the {words(name)}" for name, count in rows.items()))
        return "; ".join([*parts, f"{self.entry.parameters:,} weights"])


def view(entry: Any, identifier: str) -> AnalysisView:
    """The view of one analysis; `identifier` begins the identifiers of its drawings."""
    return _VIEWS[entry.kind](entry, identifier)


def in_text(entry: Any) -> list[str]:
    """The analysis as lines for a terminal."""
    seen = view(entry, "analysis")
    lines = [f"{seen.title}: {entry.subject}", *(f"  {sentence}" for sentence in seen.sentences)]
    for title, items in seen.lists:
        lines += ["", f"{title}:", *(f"  - {item}" for item in items)]
    for table in seen.tables:
        lines += ["", table.caption, *_aligned([table.header, *table.rows])]
    return [*lines, "", *(f"note: {note}" for note in entry.notes), f"settings: {seen.settings}"]


def _connectivity(entry: Connectivity, identifier: str) -> AnalysisView:
    keys = [key for key in entry.paths[0].barriers if key.endswith("_loss")]
    sentences, drawn, rows = [], [], []
    for index, path in enumerate(entry.paths[:MOST_PATHS]):
        rises = []
        for key in (key for key in keys if key in path.barriers):
            barrier = path.barriers[key]
            height = f"rises {number(barrier.rise)} nats above the line (at a = {barrier.rise_at:.2g})"
            rises.append(f"the {words(key)} {height if barrier.rise > 0 else 'never rises above the line'}")
        lost = f" At {len(path.lost)} points between them the model is broken." if path.lost else ""
        sentences.append(
            f"From {path.first} to {path.second}, ‖Δθ‖ = {number(path.distance)} "
            f"({_share(path.relative_distance)} of ‖θ‖) apart: {' and '.join(rises)}.{lost}"
        )
        drawn += figures.path_figures(path, f"{identifier}-path-{index}")
    for path in entry.paths:
        for key, barrier in path.barriers.items():
            ends = [point.values[key] for point in (path.points[0], path.points[-1])]
            rows.append([
                f"{path.first} → {path.second}",
                words(key),
                *(f"{number(end.value)} (n {end.n:,})" for end in ends),
                f"{number(barrier.rise)} at a = {barrier.rise_at:.2g}",
                f"{number(barrier.fall)} at a = {barrier.fall_at:.2g}",
            ])  # fmt: skip
    sentences.append(
        "The barrier is the largest rise of a loss over the straight line between its values at the two ends; near 0, "
        "both models lie in one basin."
    )
    caption = "Largest rise over, and fall under, the line between the ends"
    header = ["from → to", "quantity", "at a = 0", "at a = 1", "rise", "fall"]
    table = AnalysisTable(caption, header, rows, folded=len(rows) > MOST_ROWS)
    return AnalysisView(entry, identifier, "Linear mode connectivity", sentences, drawn, [table])


def _landscape(entry: Landscape, identifier: str) -> AnalysisView:
    here = next((p.losses for p in entry.points if not any(p.at)), {})
    meanings = {
        "random": "a filter-normalised random direction",
        "attack": "the direction in which that attack moved the weights, which it leaves at 1",
        "model": "the direction toward that model, which lies at 1",
    }
    sentences = [
        f"One unit of {axis.name} is {number(axis.norm)} in weight space: {meanings[axis.toward]}."
        for axis in entry.axes
    ]
    if entry.cosine is not None:
        sentences.append(f"The cosine between the two directions is {number(entry.cosine)}.")
    for key in entry.points[0].losses:
        values = [p.losses[key] for p in entry.points]
        known = [v for v in values if v is not None]
        if known:
            centre = here.get(key)
            at = f"{number(centre)} at the run, " if centre is not None else ""
            sentences.append(
                f"The {words(key)} is {at}from {number(min(known))} to {number(max(known))} in the picture."
            )
        if len(known) < len(values):
            sentences.append(f"At {len(values) - len(known)} of {len(values)} points the {words(key)} is not finite.")
    if len(entry.axes) == 1:
        drawn = [figures.line_landscape(entry, identifier)]
    else:
        planes = (figures.plane_landscape(entry, key, f"{identifier}-{key}") for key in entry.points[0].losses)
        drawn = [figure for figure in planes if figure is not None]
    return AnalysisView(entry, identifier, "Loss landscape", sentences, drawn)


def _sharpness(entry: Sharpness, identifier: str) -> AnalysisView:
    last = entry.radii[-1]
    sentences = []
    if "forget_loss" in last.fall:
        base = entry.base["forget_loss"]
        sentences.append(
            f"A change of size {number(last.radius)} ({_share(last.relative)} of ‖θ‖) in the worst direction found "
            f"lowers the forget loss from {number(base)} to {number(base - last.fall['forget_loss'])}: what an "
            "attacker gains who has the forget set."
        )
    if "retain_loss" in last.rise:
        base = entry.base["retain_loss"]
        sentences.append(
            f"One of the same size raises the retain loss from {number(base)} to "
            f"{number(base + last.rise['retain_loss'])}."
        )
    for key, trace in entry.trace.items():
        sentences.append(f"The Hessian’s trace of the {words(key)} is {_estimate(trace)}.")
    sentences.append("The worst cases are what a few steps of ascent found: the true ones are at least as large.")
    header = ["ρ", "of ‖θ‖"]
    rows = [[number(r.radius), _share(r.relative)] for r in entry.radii]
    for key in entry.base:
        header += [f"{words(key)}: worst rise", "worst fall", "average"]
        for row, r in zip(rows, entry.radii, strict=True):
            row += [_signed(r.rise[key]), _signed(-r.fall[key]), _estimate(r.average[key])]
    drawn = [
        figures.sharpness_worst(entry, f"{identifier}-worst"),
        figures.sharpness_average(entry, f"{identifier}-average"),
    ]
    table = AnalysisTable("Change of each loss within a radius ρ", header, rows)
    return AnalysisView(entry, identifier, "Sharpness", sentences, drawn, [table])


def _certificate(entry: Certificate, identifier: str) -> AnalysisView:
    asked = bool(entry.smoothed[0].questions)
    revealed = f", {entry.plain_revealed} of {entry.asked} revealed" if asked else ""
    caption = (
        f"Smoothed models, with confidence {exact_percent(1 - entry.alpha)} for all of them together; without noise: "
        f"{_utility(entry.plain_utility)}{revealed}"
    )
    header = ["σ", "noise σ√d", "draws that reveal", "lower bound of not revealing", "R", "utility at σ"]
    rows = []
    for smoothed in entry.smoothed:
        together, works = smoothed.together, "yes" if smoothed.utility else MISSING
        rows.append([
            *map(number, (smoothed.sigma, smoothed.noise_norm)),
            f"{together.revealed} of {together.draws}",
            *map(number, (together.p_lower, together.radius)),
            _utility(smoothed.utility),
            "no: " + "; ".join(smoothed.collapsed) if smoothed.collapsed else works,
        ])  # fmt: skip
    tables = [AnalysisTable(caption, [*header, "still a model"], rows)]
    if entry.displacements:
        best = max(entry.smoothed, key=lambda smoothed: smoothed.together.radius)
        radius, sigma = number(best.together.radius), number(best.sigma)
        caption = f"Displacements against the largest radius, R = {radius} at σ = {sigma}"
        header = ["what moved the weights", "‖Δθ‖", "from", "within R", "chance to reveal at most"]
        reached = {}
        for r in best.reach:
            at_most = "1 (nothing is said)" if r.reveals_at_most >= 0.995 else number(r.reveals_at_most)
            reached[r.name] = ["yes" if r.inside else "no", at_most]
        moved = [
            [d.name, number(d.value), d.note or MISSING, *reached.get(d.name, [MISSING, MISSING])]
            for d in entry.displacements
        ]
        tables.append(AnalysisTable(caption, header, moved))
    for smoothed in (smoothed for smoothed in entry.smoothed if smoothed.questions):
        rows = []
        for question in smoothed.questions:
            plain, bound = "revealed" if question.plain else "not revealed", question.bound
            reveals, radius = f"{bound.revealed} of {bound.draws}", number(bound.radius) if bound.radius > 0 else "none"
            rows.append([question.question, plain, reveals, radius])
        caption = f"Each question by itself at σ = {number(smoothed.sigma)}"
        tables.append(
            AnalysisTable(caption, ["question", "without noise", "draws that reveal", "R"], rows, folded=True)
        )
    criterion = f"A question counts as revealed when {entry.criterion}; the set, when {entry.event}."
    sentence = criterion if asked else f"The set counts as revealed when {entry.event}."
    lists = [("What is certified", entry.certified), ("What is not", entry.not_certified)]
    drawn = [figures.reach(entry, identifier)]
    return AnalysisView(entry, identifier, "Certificate", [sentence], drawn, tables, lists)


def _depth(entry: Depth, identifier: str) -> AnalysisView:
    low, high = entry.score.ci95
    sentences = [
        f"The unlearning depth score is {number(entry.score.value)} ({number(low)} to {number(high)}, n "
        f"{entry.score.n:,}): 1 where every layer has lost the answers as the retrained model’s has, 0 where it holds "
        "them as the original’s."
    ]
    if entry.left_out:
        sentences.append(f"{entry.left_out} rows are left out: no layer of the retrained model takes from them.")
    if entry.broken:
        sentences.append(
            f"The unlearned model is broken, so the score says nothing of forgetting: {'; '.join(entry.broken)}."
        )
    header = ["layer", "lost with the retrained model’s states", "lost with the unlearned model’s", "rows that count"]
    rows = [[str(e.layer), number(e.retrained), number(e.unlearned), f"{e.counted:,}"] for e in entry.layers]
    caption = "Nats a token that the original loses of the answers"
    table = AnalysisTable(caption, header, rows, folded=len(rows) > MOST_ROWS)
    return AnalysisView(entry, identifier, "Unlearning depth", sentences, [], [table])


def _spectrum(entry: Spectrum, identifier: str) -> AnalysisView:
    energy = f"energy of the top {entry.top}"
    rows, tables, sentences = [], [], []
    for change in entry.changes:
        moved = [matrix for matrix in change.matrices if matrix.stable_rank is not None]
        ranks, energies = ([getattr(m, key) for m in moved] for key in ("stable_rank", "energy"))
        rows.append([
            change.name,
            number(change.norm),
            MISSING if change.relative is None else _share(change.relative),
            f"{len(moved)} of {len(change.matrices)}",
            number(statistics.median(ranks)) if ranks else MISSING,
            _share(statistics.median(energies)) if energies else MISSING,
            MISSING if change.undone is None else number(change.undone),
            MISSING if change.kept is None else number(change.kept),
        ])  # fmt: skip
        if moved:
            sentences.append(
                f"{change.name} changed half of its matrices with a stable rank of at most "
                f"{number(statistics.median_low(ranks))}; their top {entry.top} components make up "
                f"{_share(statistics.median(energies))} of the change, in the median."
            )
        of_matrices = [
            [
                m.name,
                number(m.norm),
                MISSING if m.relative is None else _share(m.relative),
                MISSING if m.stable_rank is None else number(m.stable_rank),
                MISSING if m.energy is None else _share(m.energy),
            ]
            for m in change.matrices
        ]
        header = ["matrix", "‖Δ‖", "of its norm", "stable rank", energy]
        tables.append(AnalysisTable(f"Each matrix: {change.name}", header, of_matrices, folded=True))
    sentences.append(
        "A stable rank near 1 is a change along one direction. “Undone” is the share of unlearning’s change that an "
        "attack takes back; “kept” the share of the forgetting that it left."
    )
    header = ["what changed the weights", "‖Δθ‖", "of ‖θ‖", "matrices changed"]
    header += ["median stable rank", f"median {energy}", "undone", "kept"]
    summary = AnalysisTable("Changes of the weights", header, rows)
    return AnalysisView(entry, identifier, "Spectrum of the change", sentences, [], [summary, *tables])


_VIEWS: Mapping[str, Callable[[Any, str], AnalysisView]] = {
    "connectivity": _connectivity,
    "landscape": _landscape,
    "sharpness": _sharpness,
    "certificate": _certificate,
    "depth": _depth,
    "spectrum": _spectrum,
}


def _utility(metrics: Metrics) -> str:
    shown = [key for key in metrics if is_share(key, "retain_") or key == "general_perplexity"]
    chosen = shown or list(metrics)[:2]
    return ", ".join(f"{words(key)} {number(metrics[key].value)}" for key in chosen) or "none measured"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _estimate(estimate: MeanEstimate) -> str:
    error = f" ± {number(estimate.standard_error)}" if estimate.standard_error is not None else ""
    return f"{_signed(estimate.value)}{error} (n {estimate.n})"


def _signed(value: float) -> str:
    return number(value) if value <= 0 else f"+{number(value)}"


def _share(value: float) -> str:
    return percent(value) if value >= 0.01 else f"{number(value * 100)} %"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    # A prompt may have several lines, a table's cell has one.
    rows = [[" ".join(cell.split()) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "  " + "─" * min(max(map(len, lines)) - 2, 110), *lines[1:]]
