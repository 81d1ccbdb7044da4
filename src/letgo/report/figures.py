"""The report's drawings, each with the data table behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from letgo.report import chart
from letgo.report.chart import Axis, Figure, Key, Line, Mark, Strokes
from letgo.report.contours import Segment
from letgo.report.numbers import MISSING, Measured, measured, number, percent, words
from letgo.report.table import Row, columns, rows
from letgo.runs.results import AttackResult, Metrics, Result

MOST_POINTS = 400
"""A training curve is thinned to about so many points a line."""
MOST_ROWS = 60
"""And the table behind it to about so many rows."""
MOST_NAMED = 30
"""Up to so many runs carry their number in the plot of all runs."""
CLASSES = {"survived": "reference", "broken": "attack", "after": "after"}
"""By how a run ended, the class of its mark in the plot of all runs."""
PHASES = {"first_order": "first order", "zeroth_order": "zeroth order"}


def trade_off(result: Result, identifier: str) -> Figure | None:
    """Forgetting against utility: each measured model a point with its 95 % intervals, joined in the order in which
    they came to be. Left is forgotten, top is useful; an attack that brings the knowledge back goes right."""
    axes = _axes([result])
    if axes is None:
        return None
    forget, retain = axes
    shown = [row for row in rows(result) if row.kind != "baseline" and {forget, retain} <= row.metrics.keys()]
    if len(shown) < 2:
        return None
    points = {row.stage: _point(row.metrics, forget, retain) for row in shown}
    attacks = [row.stage for row in shown if row.attack is not None]
    others = {"reference": "R"}
    signs = [
        f"A{attacks.index(row.stage) + 1}" if row.attack is not None else others.get(row.kind, row.label)
        for row in shown
    ]
    layers: list[chart.Layer] = []
    for row in shown:
        (x, y), (left, right), (low, high) = points[row.stage], *(_bounds(row.metrics[key]) for key in axes)
        layers.append(Strokes([(left, y, right, y), (x, low, x, high)], f"reach {row.kind}"))
    if "before" in points and "after" in points:
        layers.append(Strokes([(*points["before"], *points["after"])], "join after"))
    if "after" in points and attacks:
        layers.append(Strokes([(*points["after"], *points[stage]) for stage in attacks], "join attack"))
    layers += [Mark(points[row.stage], _shape(row), row.kind, sign) for row, sign in zip(shown, signs, strict=True)]
    return chart.chart(
        identifier,
        "Forgetting, utility and robustness",
        "Each model is a point, with its 95 % intervals as thin lines. The better an unlearned model, the further up "
        "and to the left; an attack that brings the knowledge back moves it right.",
        "; ".join(
            f"{_full(row)}: {words(forget)} {number(row.metrics[forget].value)}, "
            f"{words(retain)} {number(row.metrics[retain].value)}"
            for row in shown
        ),
        *_plane(
            forget,
            retain,
            [bound for row in shown for bound in _bounds(row.metrics[forget])],
            [bound for row in shown for bound in _bounds(row.metrics[retain])],
        ),
        layers,
        legend=[
            Key(chart.mark_key(_shape(row), row.kind), sign if sign != row.label else "", _full(row))
            for row, sign in zip(shown, signs, strict=True)
        ],
        header=["model", words(forget), words(retain)],
        table=[[_full(row), measured(row.metrics[forget]), measured(row.metrics[retain])] for row in shown],
    )


def all_runs(results: Sequence[Result], names: Sequence[str], identifier: str) -> Figure | None:
    """Every run a point (after unlearning), with a tail to where its hardest attack brought it."""
    axes = _axes(results)
    if axes is None:
        return None
    forget, retain = axes
    shown = [(i, r) for i, r in enumerate(results, 1) if {forget, retain} <= r.after.keys()]
    if not shown:
        return None
    worst = {i: _hardest(result, forget, retain) for i, result in shown}
    metrics = [result.after for _, result in shown] + [attack.metrics for attack in worst.values() if attack]
    marks: list[Mark] = []
    tails: list[Segment] = []
    table = []
    for i, result in shown:
        at, attack = _point(result.after, forget, retain), worst[i]
        kind = "broken" if result.status != "finished" else "survived" if _all_survived(result) else "after"
        name, sign = f"{i}: {names[i - 1]}", str(i) if len(shown) <= MOST_NAMED else ""
        marks.append(Mark(at, kind, CLASSES[kind], sign, name))
        if attack is not None:
            tails.append((*at, *_point(attack.metrics, forget, retain)))
        told = MISSING if attack is None else f"{number(attack.metrics[forget].value)} ({attack.label})"
        table.append([name, measured(result.after[forget]), measured(result.after[retain]), told])
    return chart.chart(
        identifier,
        "Forgetting, utility and robustness of all runs",
        "Each run after unlearning is a point, under its number in the table; its tail ends where the hardest attack "
        "brought it. Best is up and to the left, with no tail.",
        f"{len(shown)} runs; the figures are in the table that follows.",
        *_plane(forget, retain, [m[forget].value for m in metrics], [m[retain].value for m in metrics]),
        [Strokes(tails, "join attack"), *marks],
        legend=[
            Key(chart.mark_key("survived", "reference"), "", "survived every attack made on it"),
            Key(chart.mark_key("after", "after"), "", "not attacked, or did not survive an attack"),
            Key(chart.mark_key("broken", "attack"), "", "collapsed or failed"),
        ],
        header=["run", f"{words(forget)} after", f"{words(retain)} after", f"{words(forget)} after the hardest attack"],
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
    thinned = points[:: math.ceil(len(points) / most_points)]
    if thinned[-1] is not points[-1]:
        thinned.append(points[-1])
    series = {
        name: [(float(row["step"]), float(row[name])) for row in thinned if _is_number(row.get(name))]
        for name in ("loss", "forget_loss", "retain_loss")
    }
    series = {name: line for name, line in series.items() if len(line) > 1}
    steps = [float(row["step"]) for row in points]
    low, high = chart.domain(y for line in series.values() for _, y in line)
    pattern, phases = f"{identifier}-hatch", _phases(points)
    hatched = [chart.Band(first, last, pattern) for name, first, last in phases if name == "zeroth_order"]
    caption = "The loss at each logged step."
    if hatched:
        caption += " The hybrid's zeroth-order phases are hatched; in between it takes first-order steps."
    told = (
        f"From {number(points[0]['loss'])} at step {steps[0]:g} to {number(points[-1]['loss'])} at step {steps[-1]:g}."
    )
    rounds = ", ".join(f"{PHASES.get(n, n)} from step {a:g} to {b:g}" for n, a, b in phases[:20])
    told += f" Phases: {rounds}." if rounds else ""
    key = Key(chart.band_key(f"{identifier}-key"), "", "zeroth-order phase (no gradients)")
    return chart.chart(
        identifier,
        "Training loss",
        caption,
        told,
        Axis("step", min(steps), max(steps)),
        Axis("loss", min(low, 0.0), high),
        [Line(words(name), line, f"series-{name.replace('_', '-')}") for name, line in series.items()],
        under=hatched,
        legend=[key] if hatched else [],
        definitions=[chart.hatch(pattern)] if hatched else [],
        header=["step", "phase", *map(words, series)],
        table=[
            [f"{row['step']:g}", PHASES.get(str(row.get("phase")), str(row.get("phase") or MISSING))]
            + [number(row[name]) if _is_number(row.get(name)) else MISSING for name in series]
            for row in thinned[:: math.ceil(len(thinned) / most_rows)]
        ],
    )


def attacked(result: Result, identifier: str) -> Figure | None:
    """How much of the forgetting each attack left, as bars against the threshold for survival."""
    if not result.attacks:
        return None
    return chart.strips(
        identifier,
        "Forgetting kept after each attack",
        "The share of the forgetting that is still there, on the metric that lost most. The upright line is the share "
        "that counts as survived.",
        "; ".join(f"{attack.label} {percent(attack.kept)}, {_outcome(attack)}" for attack in result.attacks),
        [_strip(attack) for attack in result.attacks],
        [(share, percent(share)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
        header=["attack", "kept", "needed", "outcome"],
        table=[[a.label, percent(a.kept), percent(a.threshold), _outcome(a)] for a in result.attacks],
    )


def _strip(attack: AttackResult) -> chart.Strip:
    amount = "broke the model" if attack.collapsed else percent(attack.kept)
    # What a broken model has kept proves nothing.
    kept = 0.0 if attack.collapsed else attack.kept
    text = f"{'✓' if attack.survived else '✗'} {amount}"
    class_ = "survived" if attack.survived else "lost"
    return chart.Strip(attack.label, text, kept, class_, threshold=attack.threshold)


def curve(attack: AttackResult, identifier: str) -> Figure | None:
    """What came back over an attack's own steps, where the attack recorded it: the mean over its seeds."""
    if len(attack.curve) < 2:
        return None
    found = list(dict.fromkeys(key for point in attack.curve for key in point))
    across = next((key for key in ("step", "steps", "epoch", "samples", "bits") if key in found), found[0])
    named = [key for key in found if key != across]
    courses = attack.curves if len(attack.curves) > 1 else [attack.curve]
    points = _mean_course(courses, across, named)
    unit = [k for k in named if all(0 <= p[k] <= 1 for p in points if k in p)]
    drawn = [key for key in (unit or named) if "loss" not in key][:4] or named[:1]
    if len(points) < 2 or not drawn:
        return None
    xs = [point[across] for point in points]
    lines = {k: [(p[across], p[k]) for p in points if k in p] for k in drawn}
    return chart.chart(
        identifier,
        f"During the attack {attack.name}",
        f"Over the attack's own steps: {attack.label}{f'; mean of {len(courses)} seeds' if courses[1:] else ''}.",
        "; ".join(f"{words(k)} from {number(v[0][1])} to {number(v[-1][1])}" for k, v in lines.items() if v),
        Axis(words(across), min(xs), max(xs), whole=across != "epoch"),
        Axis(
            "score" if len(lines) > 1 else words(drawn[0]),
            *chart.domain(y for line in lines.values() for _, y in line),
        ),
        chart.series({words(key): line for key, line in lines.items()}),
        header=[words(across), *map(words, named)],
        table=[[f"{p[across]:g}", *(number(p[k]) if k in p else MISSING for k in named)] for p in points],
    )


def _mean_course(
    courses: Sequence[Sequence[Mapping[str, float]]], across: str, keys: Sequence[str]
) -> list[dict[str, float]]:
    """One row for each place on the way: the mean of each quantity over the courses that have it there."""
    gathered: dict[float, dict[str, list[float]]] = {}
    for point in (point for course in courses for point in course if _is_number(point.get(across))):
        row = gathered.setdefault(float(point[across]), {})
        for key in (key for key in keys if _is_number(point.get(key))):
            row.setdefault(key, []).append(float(point[key]))
    return [
        {across: at} | {key: sum(values) / len(values) for key, values in gathered[at].items()}
        for at in sorted(gathered)
    ]


def _axes(results: Sequence[Result]) -> tuple[str, str] | None:
    """Forget and retain metric of the plots: the first of the main table's that some run has."""
    found = {key for result in results for key in result.after}
    keys = [column.key for column in columns(results) if column.key in found]
    forget = next((key for key in keys if key.startswith("forget_")), None)
    retain = next((key for key in keys if key.startswith(("retain_", "model_"))), None)
    return (forget, retain) if forget and retain else None


def _hardest(result: Result, forget: str, retain: str) -> AttackResult | None:
    measured = [attack for attack in result.attacks if {forget, retain} <= attack.metrics.keys()]
    return min(measured, key=lambda attack: attack.kept, default=None)


def _all_survived(result: Result) -> bool:
    return bool(result.attacks) and all(attack.survived for attack in result.attacks)


def _outcome(attack: AttackResult) -> str:
    return "broke the model" if attack.collapsed else "survived" if attack.survived else "not survived"


def _shape(row: Row) -> str:
    return row.kind if row.attack is None else "survived" if row.attack.survived else "lost"


def _full(row: Row) -> str:
    if row.attack is None:
        return row.label
    held_out = ", on held-out rows" if row.attack.baseline else ""
    return f"after {row.attack.label} ({_outcome(row.attack)}{held_out})"


def _bounds(metric: Measured) -> tuple[float, float]:
    low, high = metric.ci95
    return (low if math.isfinite(low) else metric.value, high if math.isfinite(high) else metric.value)


def _plane(forget: str, retain: str, across: Sequence[float], up: Sequence[float]) -> tuple[Axis, Axis]:
    """The axes of forgetting against utility, for these values."""
    return (
        Axis(f"{words(forget)}  (← forgotten)", *chart.domain(across)),
        Axis(f"{words(retain)}  (useful →)", *chart.domain(up, close=True)),
    )


def _point(metrics: Metrics, forget: str, retain: str) -> chart.Point:
    return (metrics[forget].value, metrics[retain].value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _phases(points: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """(phase, from, to) for each unbroken stretch. Half-way between two logged points a phase gives way to the next."""
    stretches: list[tuple[str, float, float]] = []
    for before, row in zip([None, *points], points, strict=False):
        name, step = row.get("phase"), float(row["step"])
        edge = step if before is None else (float(before["step"]) + step) / 2
        if stretches:
            last = stretches[-1]
            stretches[-1] = (last[0], last[1], step if last[0] == name else edge)
        if not stretches or stretches[-1][0] != name:
            stretches.append((str(name), edge, step))
    return [stretch for stretch in stretches if stretch[0] != "None"]
