"""The report's drawings, each with the data table behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from letgo.report import svg
from letgo.report.numbers import MISSING, Measured, measured, number, percent, words
from letgo.report.svg import BOTTOM, HEIGHT, TOP, WIDTH, Plot, marker, tag
from letgo.report.table import Row, columns, rows
from letgo.runs.results import AttackResult, Result

MOST_POINTS = 400
"""A training curve is thinned to about so many points a line."""
MOST_ROWS = 60
"""And the table behind it to about so many rows."""
MOST_NAMED = 30
"""Up to so many runs carry their number in the plot of all runs."""
PHASES = {"first_order": "first order", "zeroth_order": "zeroth order"}


@dataclass(frozen=True)
class Key:
    """One entry of a drawing's legend: a sample of the mark, its short sign in the drawing, and what it is."""

    sample: Markup
    sign: str
    text: str


@dataclass(frozen=True)
class Figure:
    identifier: str
    title: str
    caption: str
    drawing: Markup
    legend: Sequence[Key]
    header: Sequence[str]
    table: Sequence[Sequence[str]]


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
    plot = Plot(
        svg.domain(bound for row in shown for bound in _bounds(row.metrics[forget])),
        svg.domain((bound for row in shown for bound in _bounds(row.metrics[retain])), close=True),
        f"{words(forget)}  (← forgotten)",
        f"{words(retain)}  (useful →)",
    )
    plot.axes()
    places = {row.stage: (plot.x(row.metrics[forget].value), plot.y(row.metrics[retain].value)) for row in shown}
    for row in shown:
        (x, y), low, high = places[row.stage], *_bounds(row.metrics[forget])
        bottom, top = _bounds(row.metrics[retain])
        reach = f"M{plot.x(low):.1f} {y:.1f}H{plot.x(high):.1f}M{x:.1f} {plot.y(bottom):.1f}V{plot.y(top):.1f}"
        plot.add(tag("path", class_=f"reach {row.kind}", d=reach))
    if "before" in places and "after" in places:
        plot.add(_join(places["before"], places["after"], "after"))
    signs: list[str] = []
    for row in shown:
        if row.attack is not None and "after" in places:
            plot.add(_join(places["after"], places[row.stage], "attack"))
        x, y = places[row.stage]
        plot.add(marker(_shape(row), x, y, row.kind))
        plot.occupy(x, y)
        number_of_attacks = sum(sign.startswith("A") for sign in signs)
        signs.append({"attack": f"A{number_of_attacks + 1}", "reference": "R"}.get(row.kind, row.label))
    for row, sign in zip(shown, signs, strict=True):
        plot.label(*places[row.stage], sign)
    legend = [
        Key(_sample(_shape(row), row.kind), sign if sign != row.label else "", _full(row))
        for row, sign in zip(shown, signs, strict=True)
    ]
    title = "Forgetting, utility and robustness"
    told = "; ".join(
        f"{_full(row)}: {words(forget)} {number(row.metrics[forget].value)}, "
        f"{words(retain)} {number(row.metrics[retain].value)}"
        for row in shown
    )
    table = [[_full(row), measured(row.metrics[forget]), measured(row.metrics[retain])] for row in shown]
    return Figure(
        identifier,
        title,
        "Each model is a point, with its 95 % intervals as thin lines. The better an unlearned model, the further up "
        "and to the left; an attack that brings the knowledge back moves it right.",
        plot.render(identifier, title, told),
        legend,
        ["model", words(forget), words(retain)],
        table,
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
    points = [result.after for _, result in shown] + [attack.metrics for attack in worst.values() if attack]
    xs, ys = [p[forget].value for p in points], [p[retain].value for p in points]
    plot = Plot(
        svg.domain(xs), svg.domain(ys, close=True), f"{words(forget)}  (← forgotten)", f"{words(retain)}  (useful →)"
    )
    plot.axes()
    table = []
    for i, result in shown:
        x, y = plot.x(result.after[forget].value), plot.y(result.after[retain].value)
        attack = worst[i]
        if attack is not None:
            end = (plot.x(attack.metrics[forget].value), plot.y(attack.metrics[retain].value))
            plot.add(_join((x, y), end, "attack"))
        kind = "broken" if result.status != "finished" else "survived" if _all_survived(result) else "after"
        name = f"{i}: {names[i - 1]}"
        mark = marker(kind, x, y, "reference" if kind == "survived" else "attack" if kind == "broken" else "after")
        plot.add(tag("g", tag("title", escape(name)), mark))
        plot.occupy(x, y)
        told = MISSING if attack is None else f"{number(attack.metrics[forget].value)} ({attack.label})"
        table.append([name, measured(result.after[forget]), measured(result.after[retain]), told])
    if len(shown) <= MOST_NAMED:
        for i, result in shown:
            plot.label(plot.x(result.after[forget].value), plot.y(result.after[retain].value), str(i))
    title = "Forgetting, utility and robustness of all runs"
    return Figure(
        identifier,
        title,
        "Each run after unlearning is a point, under its number in the table; its tail ends where the hardest attack "
        "brought it. Best is up and to the left, with no tail.",
        plot.render(identifier, title, f"{len(shown)} runs; the figures are in the table that follows."),
        [
            Key(_sample("survived", "reference"), "", "survived every attack made on it"),
            Key(_sample("after", "after"), "", "not attacked, or did not survive an attack"),
            Key(_sample("broken", "attack"), "", "collapsed or failed"),
        ],
        ["run", f"{words(forget)} after", f"{words(retain)} after", f"{words(forget)} after the hardest attack"],
        table,
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
    low, high = svg.domain(y for line in series.values() for _, y in line)
    plot = Plot((min(steps), max(steps)), (min(low, 0.0), high), "step", "loss")
    hatch = f"{identifier}-hatch"
    phases = _phases(points)
    for name, first, last in phases:
        if name != "zeroth_order":
            continue
        left, right = plot.x(first), plot.x(last)
        box = {"x": left, "y": TOP, "width": max(right - left, 1.0), "height": HEIGHT - TOP - BOTTOM}
        plot.add(tag("rect", class_="phase", **box), tag("rect", fill=f"url(#{hatch})", **box))
    plot.axes()
    for name, line in series.items():
        plot.line(line, f"series-{name.replace('_', '-')}")
    legend = [Key(line_sample(f"series-{name.replace('_', '-')}"), "", words(name)) for name in series]
    definitions = []
    caption = "The loss at each logged step."
    if any(name == "zeroth_order" for name, _, _ in phases):
        definitions.append(_hatch(hatch))
        legend.append(Key(_phase_sample(f"{identifier}-key"), "", "zeroth-order phase (no gradients)"))
        caption += " The hybrid's zeroth-order phases are hatched; in between it takes first-order steps."
    rounds = ", ".join(f"{PHASES.get(n, n)} from step {a:g} to {b:g}" for n, a, b in phases[:20])
    told = (
        f"From {number(points[0]['loss'])} at step {steps[0]:g} to {number(points[-1]['loss'])} at step {steps[-1]:g}."
    )
    title = "Training loss"
    spread = thinned[:: math.ceil(len(thinned) / most_rows)]
    table = [
        [f"{row['step']:g}", PHASES.get(str(row.get("phase")), str(row.get("phase") or MISSING))]
        + [number(row[name]) if _is_number(row.get(name)) else MISSING for name in series]
        for row in spread
    ]
    told += f" Phases: {rounds}." if rounds else ""
    drawing = plot.render(identifier, title, told, *definitions)
    return Figure(identifier, title, caption, drawing, legend, ["step", "phase", *map(words, series)], table)


def attacked(result: Result, identifier: str) -> Figure | None:
    """How much of the forgetting each attack left, as bars against the threshold for survival."""
    if not result.attacks:
        return None
    step, top = 46, 30
    height = top + step * len(result.attacks) + 14
    left, right = 12.0, WIDTH - 20.0
    scale = right - left
    parts = [tag("title", "Forgetting kept after each attack", id=f"{identifier}-title")]
    told = "; ".join(f"{attack.label} {percent(attack.kept)}, {_outcome(attack)}" for attack in result.attacks)
    parts.append(tag("desc", escape(told), id=f"{identifier}-desc"))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        at, anchor = left + share * scale, "start" if share == 0 else "end" if share == 1 else "middle"
        parts.append(tag("line", class_="grid", x1=at, x2=at, y1=top - 8, y2=height))
        parts.append(tag("text", percent(share), class_="tick", x=at, y=top - 14, text_anchor=anchor))
    for index, attack in enumerate(result.attacks):
        y = top + index * step
        name = attack.label if len(attack.label) <= 46 else f"{attack.label[:45]}…"
        amount = "broke the model" if attack.collapsed else percent(attack.kept)
        said = f"{'✓' if attack.survived else '✗'} {amount}"
        # What a broken model has kept proves nothing.
        width = 2.0 if attack.collapsed else max(attack.kept * scale, 2.0)
        class_ = "bar survived" if attack.survived else "bar lost"
        parts += [
            tag("text", escape(name), class_="label", x=left, y=y + 10),
            tag("text", escape(said), class_="label", x=right, y=y + 10, text_anchor="end"),
            tag("rect", class_="track", x=left, y=y + 17, width=scale, height=14, rx=2),
            tag("rect", class_=class_, x=left, y=y + 17, width=width, height=14, rx=2),
            tag("line", class_="threshold", **_upright(left + attack.threshold * scale, y + 13, y + 35)),
        ]
    drawing = tag(
        "svg",
        *parts,
        viewBox=f"0 0 {WIDTH} {height}",
        role="img",
        aria_labelledby=f"{identifier}-title {identifier}-desc",
    )
    table = [[a.label, percent(a.kept), percent(a.threshold), _outcome(a)] for a in result.attacks]
    return Figure(
        identifier,
        "Forgetting kept after each attack",
        "The share of the forgetting that is still there, on the metric that lost most. The upright line is the share "
        "that counts as survived.",
        drawing,
        [],
        ["attack", "kept", "needed", "outcome"],
        table,
    )


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
    ends = svg.domain(y for line in lines.values() for _, y in line)
    plot = Plot(
        (min(xs), max(xs)), ends, words(across), "score" if len(lines) > 1 else words(drawn[0]), across != "epoch"
    )
    plot.axes()
    for index, line in enumerate(lines.values()):
        plot.line(line, f"series-{index}")
    title = f"During the attack {attack.name}"
    told = "; ".join(f"{words(k)} from {number(v[0][1])} to {number(v[-1][1])}" for k, v in lines.items() if v)
    return Figure(
        identifier,
        title,
        f"Over the attack's own steps: {attack.label}{f'; mean of {len(courses)} seeds' if courses[1:] else ''}.",
        plot.render(identifier, title, told),
        [Key(line_sample(f"series-{index}"), "", words(key)) for index, key in enumerate(lines)],
        [words(across), *map(words, named)],
        [[f"{p[across]:g}", *(number(p[k]) if k in p else MISSING for k in named)] for p in points],
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


def _join(start: tuple[float, float], end: tuple[float, float], class_: str) -> Markup:
    return tag("line", class_=f"join {class_}", x1=start[0], y1=start[1], x2=end[0], y2=end[1])


def _upright(x: float, top: float, bottom: float) -> dict[str, float]:
    return {"x1": x, "x2": x, "y1": top, "y2": bottom}


def _hatch(identifier: str) -> Markup:
    stroke = tag("line", class_="hatch", x1=0, y1=0, x2=0, y2=7)
    frame = {"patternUnits": "userSpaceOnUse", "patternTransform": "rotate(45)"}
    return tag("pattern", stroke, id=identifier, width=7, height=7, **frame)


def _key(*shapes: Markup, width: int = 20) -> Markup:
    return tag("svg", *shapes, class_="key", viewBox=f"0 0 {width} 20", aria_hidden="true")


def _sample(shape: str, class_: str) -> Markup:
    return _key(marker(shape, 10, 10, class_))


def line_sample(class_: str) -> Markup:
    """A stretch of a line of some class, for a legend."""
    return _key(tag("path", class_=f"line {class_}", d="M1 10H29"), width=30)


def _phase_sample(identifier: str) -> Markup:
    box = {"x": 1, "y": 3, "width": 28, "height": 14}
    return _key(
        tag("defs", _hatch(identifier)),
        tag("rect", class_="phase", **box),
        tag("rect", fill=f"url(#{identifier})", **box),
        width=30,
    )


__all__ = ["Figure", "Key", "all_runs", "attacked", "curve", "trade_off", "training"]
