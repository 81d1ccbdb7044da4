"""Settings side by side, over their seeds: a table of what each attack left, and how it left it (bits, steps)."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from letgo.core.catalog import format_spec
from letgo.report.chart import Axis, Figure, Plot, domain
from letgo.report.comparison import Kept, Line, compare_all, lines_of
from letgo.report.labels import short_labels
from letgo.report.load import Run, find_sweep
from letgo.report.numbers import MISSING, number, percent, words
from letgo.report.settings import commands, varying
from letgo.report.table import Column
from letgo.runs.sweeps import Sweep

MOST_DRAWN = 8
"""So many lines have a stroke of their own; the others stand in the table behind a drawing."""


@dataclass(frozen=True)
class ComparedLine:
    """One setting of the table: metrics as mean and range over its runs, and what each attack left."""

    line: Line
    metrics: Mapping[str, tuple[float, float, float]]
    kept: Mapping[str, Kept]

    @property
    def commands(self) -> list[str]:
        """What to type to make its runs again, one after another."""
        return [command for run in self.line.runs for command in commands(run)]


@dataclass(frozen=True)
class Compared:
    lines: Sequence[ComparedLine]
    baseline: Line | None
    """The setting that differences are against."""
    left_out: Sequence[str]
    """What was attacked but can't be compared, and why."""
    columns: Sequence[Column]
    labels: Sequence[str]
    names: Mapping[str, str]
    figures: Sequence[Figure]
    sweeps: Sequence[Sweep]

    @property
    def unreached(self) -> list[str]:
        return [one.line.name for one in self.lines if one.line.reached is False]


def compared(runs: Sequence[Run], directories: Sequence[Path], columns: Sequence[Column]) -> Compared | None:
    """The comparison of the runs' settings; None where there is only one, or none was attacked."""
    runs = [run for run in runs if run.result.before and run.result.after]
    lines = with_targets(lines_of(runs, varying([run.result.config for run in runs])), directories)
    labels = list(dict.fromkeys(attack.label for run in runs for attack in run.result.attacks))
    if len(lines) < 2 or not labels:
        return None
    comparison = compare_all(lines, labels)
    rows = [ComparedLine(line, _metrics(line, columns), comparison.kept[line]) for line in lines]
    drawn = [bits_figure(lines, "bits"), steps_figure(lines, "steps")]
    sweeps = [sweep for directory in directories if (sweep := find_sweep(directory)) is not None]
    return Compared(
        rows,
        comparison.baseline,
        comparison.left_out,
        columns,
        labels,
        short_labels(labels),
        [figure for figure in drawn if figure is not None],
        sweeps,
    )


def with_targets(lines: Sequence[Line], directories: Sequence[Path]) -> list[Line]:
    """Lines with what their sweep says of them: whether they reached its target."""
    reached: dict[Path, bool | None] = {}
    for directory in directories:
        sweep = find_sweep(directory)
        for group in sweep.groups if sweep else ():
            reached |= {(directory / cell.run).resolve(): group.reached for cell in group.cells if cell.run}
    return [Line(one.name, one.optimizer, one.runs, reached.get(one.runs[0].directory.resolve())) for one in lines]


def bits_figure(lines: Sequence[Line], identifier: str) -> Figure | None:
    """What a quantization attack left at each number of bits, where it was made at several: the one made at most.

    Where it broke the model nothing was proven, and nothing is drawn.
    """
    kinds: dict[str, dict[int, dict[float, list[float]]]] = {}
    broken: Counter[str] = Counter()
    for index, line in enumerate(lines):
        for attack in (a for run in line.runs for a in run.result.attacks):
            bits = attack.settings.get("bits")
            if not isinstance(bits, int | float) or isinstance(bits, bool):
                continue
            kind = format_spec(attack.name, {k: v for k, v in attack.settings.items() if k != "bits"})
            broken[kind] += attack.collapsed
            if not attack.collapsed:
                points = kinds.setdefault(kind, defaultdict(lambda: defaultdict(list)))
                points[index][float(bits)].append(attack.kept)
    if not kinds:
        return None
    kind = max(kinds, key=lambda one: sum(len(by) for by in kinds[one].values()))
    series = {lines[i].name: {x: statistics.fmean(v) for x, v in by.items()} for i, by in kinds[kind].items()}
    if not any(len(points) > 1 for points in series.values()):
        return None
    caption = f"{kind}; means over each setting's runs."
    if count := broken[kind]:
        caption += f" {count} {'that broke its model is' if count == 1 else 'that broke their models are'} left out."
    return _drawn(identifier, "Quantization sweep", "bits", "share of forgetting kept", series, (0.0, 1.0), caption)


def steps_figure(lines: Sequence[Line], identifier: str) -> Figure | None:
    """How the forgotten came back over the steps of a relearning attack, the mean over runs and seeds: of the attack
    that most settings were under."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update({a.label: 1 for run in line.runs for a in run.result.attacks if a.name == "relearn"})
    if not counts:
        return None
    label = counts.most_common(1)[0][0]
    found: dict[int, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    metric = None
    for index, line in enumerate(lines):
        attacks = [a for run in line.runs for a in run.result.attacks if a.label == label]
        for point in (p for a in attacks for course in a.curves or [a.curve] for p in course if "step" in p):
            metric = metric or next((key for key in point if key.startswith("forget_")), None)
            if metric is not None and metric in point:
                found[index][float(point["step"])].append(float(point[metric]))
    series = {lines[i].name: {x: statistics.fmean(v) for x, v in by.items()} for i, by in found.items()}
    if metric is None or sum(len(points) > 1 for points in series.values()) < 2:
        return None
    values = [value for points in series.values() for value in points.values()]
    caption = f"{label}; means over each setting's runs and seeds."
    return _drawn(identifier, "Relearning, step by step", "step", words(metric), series, domain(values), caption)


def _drawn(
    identifier: str,
    title: str,
    across: str,
    up: str,
    series: Mapping[str, Mapping[float, float]],
    bounds: tuple[float, float],
    caption: str,
) -> Figure:
    xs = sorted({x for points in series.values() for x in points})
    shown = {name: sorted(points.items()) for name, points in list(series.items())[:MOST_DRAWN]}
    told = "; ".join(
        f"{name}: {number(points[min(points)])} at {min(points):g}, {number(points[max(points)])} at {max(points):g}"
        for name, points in series.items()
    )
    left_out = f" {len(series) - len(shown)} more stand in the table." if len(series) > len(shown) else ""
    plot = Plot(Axis(across, xs[0], xs[-1], whole=True), Axis(up, *bounds))
    plot.curves(shown, shown)
    return plot.figure(
        f"compared-{identifier}",
        title,
        f"{caption}{left_out}",
        told,
        header=["setting", *(f"{across} {x:g}" for x in xs)],
        table=[[name, *(number(points[x]) if x in points else MISSING for x in xs)] for name, points in series.items()],
    )


def _metrics(line: Line, columns: Sequence[Column]) -> dict[str, tuple[float, float, float]]:
    found = {}
    for column in columns:
        values = [run.result.after[column.key].value for run in line.runs if column.key in run.result.after]
        if values:
            found[column.key] = (statistics.fmean(values), min(values), max(values))
    return found


def told(kept: Kept) -> dict[str, Any]:
    """A cell of the table as text: share, interval, the worst run, and what the comparison says."""
    against = ""
    if kept.p is not None and kept.difference is not None:
        sign = "+" if kept.difference >= 0 else "−"
        against = f"{sign}{abs(kept.difference) * 100:.0f} points, p {_p(kept.p)}"
    return {
        "share": percent(kept.value),
        "interval": f"{percent(kept.low)} to {percent(kept.high)}",
        "worst": percent(kept.worst),
        "survived": f"{kept.survived} of {kept.of}",
        "against": against,
        "significant": kept.significant,
    }


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
