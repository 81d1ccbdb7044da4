"""Settings side by side, over their seeds: a table of what each attack left, and how it left it (bits, steps)."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from letgo.core.catalog import format_spec
from letgo.report.chart import Axis, Figure, Plot, domain
from letgo.report.comparison import Comparison, Line, compare_all
from letgo.report.load import find_sweep
from letgo.report.numbers import MISSING, number, words
from letgo.report.table import Column, short_labels
from letgo.runs.sweeps import Sweep

MOST_DRAWN = 8
"""So many lines have a stroke of their own; the others stand in the table behind a drawing."""

Series = Mapping[int, Mapping[float, list[float]]]
"""By the index of a line: the values at each point of the horizontal axis."""


@dataclass(frozen=True)
class Compared:
    """The comparison as the template sees it; `names` are short names of the attacks' labels."""

    lines: Sequence[Line]
    comparison: Comparison
    columns: Sequence[Column]
    labels: Sequence[str]
    names: Mapping[str, str]
    figures: Sequence[Figure]
    sweeps: Sequence[Sweep]

    @property
    def unreached(self) -> list[str]:
        return [line.name for line in self.lines if line.reached is False]


def compared(
    lines: Sequence[Line], labels: Sequence[str], directories: Sequence[Path], columns: Sequence[Column]
) -> Compared | None:
    """The comparison of settings; None where there is only one, or none was attacked."""
    if len(lines) < 2 or not labels:
        return None
    figures = [figure for figure in (bits_figure(lines, "bits"), steps_figure(lines, "steps")) if figure is not None]
    sweeps = [sweep for directory in directories if (sweep := find_sweep(directory)) is not None]
    return Compared(lines, compare_all(lines, labels), columns, labels, short_labels(labels), figures, sweeps)


def bits_figure(lines: Sequence[Line], identifier: str) -> Figure | None:
    """What a quantization attack left at each number of bits: of the attack made at most of them. Where it broke the
    model nothing was proven, and nothing is drawn."""
    kinds: dict[str, dict[int, dict[float, list[float]]]] = {}
    broken: Counter[str] = Counter()
    for index, line in enumerate(lines):
        for attack in line.attacks:
            bits = attack.settings.get("bits")
            if not isinstance(bits, int | float) or isinstance(bits, bool):
                continue
            kind = format_spec(attack.name, {k: v for k, v in attack.settings.items() if k != "bits"})
            broken[kind] += attack.collapsed
            if not attack.collapsed and attack.kept is not None:
                points = kinds.setdefault(kind, defaultdict(lambda: defaultdict(list)))
                points[index][float(bits)].append(attack.kept)
    if not kinds:
        return None
    kind = max(kinds, key=lambda kind: sum(map(len, kinds[kind].values())))
    series = _means(lines, kinds[kind])
    if not any(len(points) > 1 for points in series.values()):
        return None
    caption = f"{kind}; means over each setting's runs."
    if count := broken[kind]:
        caption += f" {count} {'that broke its model is' if count == 1 else 'that broke their models are'} left out."
    up = Axis("share of forgetting kept", 0.0, 1.0)
    return _drawn(f"compared-{identifier}", "Quantization sweep", "bits", up, series, caption)


def steps_figure(lines: Sequence[Line], identifier: str) -> Figure | None:
    """How the forgotten came back over the steps of a relearning attack, the mean over runs and seeds: of the attack
    that most settings were under."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(dict.fromkeys((a.label for a in line.attacks if a.name == "relearn"), 1))
    if not counts:
        return None
    label = counts.most_common(1)[0][0]
    points: dict[int, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    metric = None
    for index, line in enumerate(lines):
        courses = [course for attack in line.attacks_of(label) for course in attack.curves or [attack.curve]]
        for point in (point for course in courses for point in course if "step" in point):
            metric = metric or next((key for key in point if key.startswith("forget_")), None)
            if metric is not None and metric in point:
                points[index][float(point["step"])].append(float(point[metric]))
    series = _means(lines, points)
    if metric is None or sum(len(by_step) > 1 for by_step in series.values()) < 2:
        return None
    up = Axis(words(metric), *domain(value for by_step in series.values() for value in by_step.values()))
    caption = f"{label}; means over each setting's runs and seeds."
    return _drawn(f"compared-{identifier}", "Relearning, step by step", "step", up, series, caption)


def _means(lines: Sequence[Line], series: Series) -> dict[str, dict[float, float]]:
    return {lines[i].name: {x: statistics.fmean(values) for x, values in by.items()} for i, by in series.items()}


def _drawn(
    identifier: str, title: str, across: str, up: Axis, series: Mapping[str, Mapping[float, float]], caption: str
) -> Figure:
    xs = sorted({x for points in series.values() for x in points})
    shown = {name: sorted(points.items()) for name, points in list(series.items())[:MOST_DRAWN]}
    plot = Plot(Axis(across, xs[0], xs[-1], whole=True), up)
    plot.curves(shown, shown)
    left_out = f" {len(series) - len(shown)} more stand in the table." if len(series) > len(shown) else ""
    table, ends = [], []
    for name, points in series.items():
        table.append([name, *(number(points[x]) if x in points else MISSING for x in xs)])
        first, last = min(points), max(points)
        ends.append(f"{name}: {number(points[first])} at {first:g}, {number(points[last])} at {last:g}")
    header = ["setting", *(f"{across} {x:g}" for x in xs)]
    return Figure(plot, identifier, title, f"{caption}{left_out}", "; ".join(ends), header, table)
