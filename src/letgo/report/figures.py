"""The report's drawings, each with the data table behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

from letgo.report.chart import Axis, Figure, Plot, Point, Strip, Strips, domain
from letgo.report.numbers import MISSING, kept_text, measured, number, percent, words
from letgo.report.svg import band_key
from letgo.report.table import TableRow, columns, rows
from letgo.runs.results import AttackResult, Metric, Metrics, Result

MOST_POINTS = 400
"""A training curve is thinned to about so many points a line."""
MOST_ROWS = 60
"""And the table behind it to about so many rows."""
PHASES = {"first_order": "first order", "zeroth_order": "zeroth order"}


def trade_off(result: Result, identifier: str) -> Figure | None:
    """Forgetting against utility: each measured model is a point with its 95 % intervals; lines join before, after and
    attacks. Left is forgotten, top is useful; an attack that brings the knowledge back goes right."""
    axes = axes_of([result])
    if axes is None:
        return None
    forget, retain = axes
    shown = [row for row in rows(result) if row.kind != "baseline" and {forget, retain} <= row.metrics.keys()]
    if len(shown) < 2:
        return None
    points = {row.stage: _point(row.metrics, axes) for row in shown}
    attacks = [row.stage for row in shown if row.attack is not None]
    bounds = {row.stage: (_bounds(row.metrics[forget]), _bounds(row.metrics[retain])) for row in shown}
    plot = plane(axes, [x for xs, _ in bounds.values() for x in xs], [y for _, ys in bounds.values() for y in ys])
    for row in shown:
        (x, y), ((left, right), (low, high)) = points[row.stage], bounds[row.stage]
        plot.strokes([(left, y, right, y), (x, low, x, high)], f"reach {row.kind}")
    if "before" in points and "after" in points:
        plot.strokes([(*points["before"], *points["after"])], "join after")
    if "after" in points and attacks:
        plot.strokes([(*points["after"], *points[stage]) for stage in attacks], "join attack")
    table, description = [], []
    for row in shown:
        shape = row.kind if row.attack is None else "survived" if row.attack.survived else "lost"
        name, cells = _full_name(row), [row.metrics[key] for key in axes]
        sign = f"A{attacks.index(row.stage) + 1}" if row.attack else "R" if row.kind == "reference" else row.label
        plot.mark(points[row.stage], shape, row.kind, sign, name=name)
        table.append([name, *map(measured, cells)])
        values = [f"{words(key)} {number(cell.value)}" for key, cell in zip(axes, cells, strict=True)]
        description.append(f"{name}: {', '.join(values)}")
    return Figure(
        plot,
        identifier,
        "Forgetting, utility and robustness",
        "Each model is a point, with its 95 % intervals as thin lines. The better an unlearned model, the further up "
        "and to the left; an attack that brings the knowledge back moves it right.",
        "; ".join(description),
        header=["model", *map(words, axes)],
        table=table,
    )


def training(
    history: Sequence[Mapping[str, Any]], identifier: str, *, most_points: int = MOST_POINTS, most_rows: int = MOST_ROWS
) -> Figure | None:
    """Loss over steps, with the phases of a hybrid optimizer shaded. The lines are thinned to `most_points`, the table
    behind them to `most_rows`."""
    points = [row for row in history if _is_number(row.get("step")) and _is_number(row.get("loss"))]
    if len(points) < 2:
        return None
    thinned = _thinned(points, most_points)
    lines = {
        name: [(float(row["step"]), float(row[name])) for row in thinned if _is_number(row.get(name))]
        for name in ("loss", "forget_loss", "retain_loss")
    }
    lines = {name: line for name, line in lines.items() if len(line) > 1}
    steps = [float(row["step"]) for row in points]
    low, high = domain(y for line in lines.values() for _, y in line)
    plot = Plot(Axis("step", min(steps), max(steps)), Axis("loss", min(low, 0.0), high))
    for name, line in lines.items():
        plot.curve(words(name), line, f"series-{name.replace('_', '-')}")
    phases, caption = _phases(points), "The loss at each logged step."
    if hatched := [(first, last) for name, first, last in phases if name == "zeroth_order"]:
        plot.bands(hatched, f"{identifier}-hatch")
        caption += " The hybrid's zeroth-order phases are hatched; in between it takes first-order steps."
        plot.legend.append(band_key(f"{identifier}-key", "zeroth-order phase (no gradients)"))
    description = (
        f"From {number(points[0]['loss'])} at step {steps[0]:g} to {number(points[-1]['loss'])} at step {steps[-1]:g}."
    )
    if rounds := ", ".join(f"{PHASES.get(n, n)} from step {a:g} to {b:g}" for n, a, b in phases[:20]):
        description += f" Phases: {rounds}."
    table = []
    for row in thinned[:: math.ceil(len(thinned) / most_rows)]:
        phase = PHASES.get(str(row.get("phase")), str(row.get("phase") or MISSING))
        losses = [number(row[name]) if _is_number(row.get(name)) else MISSING for name in lines]
        table.append([f"{row['step']:g}", phase, *losses])
    header = ["step", "phase", *map(words, lines)]
    return Figure(plot, identifier, "Training loss", caption, description, header, table)


def looks(history: Sequence[Mapping[str, Any]], identifier: str) -> Figure | None:
    """How far the model had forgotten, and what it had lost, at each look during training."""
    points = _thinned([row for row in history if "forgotten" in row], MOST_ROWS)
    drawn = [key for key in ("forgotten", "utility_loss") if any(_is_number(row.get(key)) for row in points)]
    if len(points) < 2 or not drawn:
        return None
    measured_too = [key for key in points[0] if key not in ("step", "forgotten", "utility_loss")]
    return _course_figure(
        points,
        "step",
        drawn,
        [*drawn, *measured_too],
        identifier,
        "Looks during training",
        "The share of the way to a model that never knew (forgotten), and the largest relative loss of a measure of "
        "usefulness (utility loss). Each look scores a few items, so the table of results may say otherwise.",
    )


def attacked(result: Result, identifier: str) -> Figure | None:
    """How much of the forgetting each attack left, as bars against the threshold for survival."""
    if not result.attacks:
        return None
    bars, table, description = [], [], []
    for attack in result.attacks:
        kept, outcome = kept_text(attack.kept), _outcome(attack)
        # What a broken model has kept proves nothing.
        text, share = ("broke the model", 0.0) if attack.collapsed else (kept, attack.kept or 0.0)
        text, class_ = (f"✓ {text}", "survived") if attack.survived else (f"✗ {text}", "lost")
        bars.append(Strip(attack.label, text, share, class_, threshold=attack.threshold))
        table.append([attack.label, kept, percent(attack.threshold), outcome])
        description.append(f"{attack.label} {kept}, {outcome}")
    return Figure(
        Strips(bars, [(share, percent(share)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]),
        identifier,
        "Forgetting kept after each attack",
        "The share of the forgetting that is still there, on the metric that lost most. The upright line is the share "
        "that counts as survived.",
        "; ".join(description),
        header=["attack", "kept", "needed", "outcome"],
        table=table,
    )


def curve(attack: AttackResult, identifier: str) -> Figure | None:
    """What came back over an attack's own steps, where the attack recorded it: the mean over its seeds."""
    if len(attack.curve) < 2:
        return None
    keys = list(dict.fromkeys(key for point in attack.curve for key in point))
    across = next((key for key in ("step", "steps", "epoch", "samples", "bits") if key in keys), keys[0])
    quantities = [key for key in keys if key != across]
    courses = attack.curves if len(attack.curves) > 1 else [attack.curve]
    points = _mean_course(courses, across, quantities)
    shares = [key for key in quantities if all(0 <= point[key] <= 1 for point in points if key in point)]
    drawn = [key for key in (shares or quantities) if "loss" not in key][:4] or quantities[:1]
    if len(points) < 2 or not drawn:
        return None
    seeds = f"; mean of {len(courses)} seeds" if courses[1:] else ""
    title, caption = f"During the attack {attack.name}", f"Over the attack's own steps: {attack.label}{seeds}."
    return _course_figure(points, across, drawn, quantities, identifier, title, caption)


def _course_figure(
    points: Sequence[Mapping[str, Any]],
    across: str,
    drawn: Sequence[str],
    listed: Sequence[str],
    identifier: str,
    title: str,
    caption: str,
) -> Figure:
    """Quantities over steps (or what else is `across`): those `drawn` as lines, those `listed` in the table."""
    xs = [point[across] for point in points]
    lines = {words(key): [(p[across], p[key]) for p in points if _is_number(p.get(key))] for key in drawn}
    up = Axis("score" if len(lines) > 1 else words(drawn[0]), *domain(y for line in lines.values() for _, y in line))
    plot = Plot(Axis(words(across), min(xs), max(xs), whole=across != "epoch"), up)
    plot.curves(lines)
    return Figure(
        plot,
        identifier,
        title,
        caption,
        "; ".join(f"{name} from {number(v[0][1])} to {number(v[-1][1])}" for name, v in lines.items() if v),
        header=[words(across), *map(words, listed)],
        table=[
            [f"{p[across]:g}", *(number(p[k]) if _is_number(p.get(k)) else MISSING for k in listed)] for p in points
        ],
    )


def _mean_course(
    courses: Sequence[Sequence[Mapping[str, float]]], across: str, keys: Sequence[str]
) -> list[dict[str, float]]:
    """One row for each step: the mean of each quantity over the courses that have it there."""
    gathered: dict[float, dict[str, list[float]]] = {}
    for point in (point for course in courses for point in course if _is_number(point.get(across))):
        row = gathered.setdefault(float(point[across]), {})
        for key in (key for key in keys if _is_number(point.get(key))):
            row.setdefault(key, []).append(float(point[key]))
    return [
        {across: at} | {key: sum(values) / len(values) for key, values in gathered[at].items()}
        for at in sorted(gathered)
    ]


def _thinned(points: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """About so many of the points, evenly, and the last."""
    thinned = list(points[:: math.ceil(len(points) / most) or 1])
    return thinned if not points or thinned[-1] is points[-1] else [*thinned, points[-1]]


def axes_of(results: Sequence[Result]) -> tuple[str, str] | None:
    """Forget and retain metric of the plots: the first of the main table's that some run has."""
    known = {key for result in results for key in result.after}
    keys = [column.key for column in columns(results) if column.key in known]
    forget = next((key for key in keys if key.startswith("forget_")), None)
    retain = next((key for key in keys if key.startswith(("retain_", "model_"))), None)
    return (forget, retain) if forget and retain else None


def _outcome(attack: AttackResult) -> str:
    return "broke the model" if attack.collapsed else attack.outcome


def _full_name(row: TableRow) -> str:
    if row.attack is None:
        return row.label
    held_out = ", on held-out rows" if row.attack.baseline else ""
    return f"after {row.attack.label} ({_outcome(row.attack)}{held_out})"


def _bounds(metric: Metric) -> tuple[float, float]:
    low, high = metric.ci95
    return (low if math.isfinite(low) else metric.value, high if math.isfinite(high) else metric.value)


def plane(axes: tuple[str, str], across: Sequence[float], up: Sequence[float], *, clear: bool = False) -> Plot:
    """A plot of forgetting against utility, with room for these values."""
    forget, retain = map(words, axes)
    return Plot(
        Axis(f"{forget}  (← forgotten)", *domain(across)),
        Axis(f"{retain}  (useful →)", *domain(up, close=True)),
        clear=clear,
    )


def _point(metrics: Metrics, axes: tuple[str, str]) -> Point:
    forget, retain = axes
    return (metrics[forget].value, metrics[retain].value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _phases(points: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """(phase, from, to) for each unbroken stretch. It ends half-way to the next stretch's first point."""
    steps = [float(row["step"]) for row in points]
    edges = [steps[0], *((first + second) / 2 for first, second in pairwise(steps)), steps[-1]]
    stretches = []
    for phase, group in groupby(range(len(points)), key=lambda index: points[index].get("phase")):
        indices = list(group)
        if phase is not None:
            stretches.append((str(phase), edges[indices[0]], edges[indices[-1] + 1]))
    return stretches
