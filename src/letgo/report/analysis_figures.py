"""Drawings of analyses: lines between models, landscapes, sharpness, and a certificate's reach."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from letgo.analysis.records import Certificate, Landscape, LinearPath, Sharpness
from letgo.report import chart
from letgo.report.chart import Axis, Figure, Key, Mark, Strokes
from letgo.report.contours import levels
from letgo.report.numbers import MISSING, number, words
from letgo.report.table import is_share
from letgo.runs.results import Metric

CLASSES = 8
"""Shades of a heat map."""


def path_losses(path: LinearPath, identifier: str) -> Figure | None:
    keys = [key for key in path.barriers if key.endswith("_loss")]
    barriers = "; ".join(f"barrier of the {words(key)} {number(path.barriers[key].rise)}" for key in keys)
    return _along(path, keys, identifier, "Losses", "loss (nats a token)", barriers, chords=True)


def path_scores(path: LinearPath, identifier: str) -> Figure | None:
    keys = [key for prefix in ("forget_", "retain_") for key in path.barriers if is_share(key, prefix)]
    return _along(path, keys, identifier, "Scores", "score", "", chords=False)


def _along(
    path: LinearPath, keys: Sequence[str], identifier: str, what: str, y_title: str, said: str, *, chords: bool
) -> Figure | None:
    """Quantities over a, each with its 95 % interval; the straight line between its ends dotted."""
    if not keys:
        return None
    bounds = [b for p in path.points for k in keys for b in (*p.values[k].ci95, p.values[k].value) if math.isfinite(b)]
    low, high = chart.domain(bounds)
    # What broke between two points is no line.
    lost = [(a, math.nan) for a in path.lost]
    lines = chart.series({
        words(key): sorted([*((p.alpha, p.values[key].value) for p in path.points), *lost]) for key in keys
    })  # fmt: skip
    strokes = []
    for place, key in enumerate(keys):
        first, last = (path.points[end] for end in (0, -1))
        if chords:
            chord = (first.alpha, first.values[key].value, last.alpha, last.values[key].value)
            strokes.append(Strokes([chord], f"line chord series-{place}"))
        spreads = [(p.alpha, p.values[key].ci95[0], p.alpha, p.values[key].ci95[1]) for p in path.points]
        shift = 3.0 * (place - (len(keys) - 1) / 2)
        finite = [spread for spread in spreads if all(map(math.isfinite, spread))]
        strokes.append(Strokes(finite, f"spread series-{place}", shift))
    ends = "; ".join(
        f"{words(k)} from {number(path.points[0].values[k].value)} to {number(path.points[-1].values[k].value)}"
        for k in keys
    )
    caption = f"At (1 − a) · {path.first} + a · {path.second}. Upright lines are 95 % intervals"
    caption += "; thin lines join the ends: what rises above them is the barrier." if chords else "."

    def cell(found: Metric) -> str:
        return f"{number(found.value)} ({number(found.ci95[0])} to {number(found.ci95[1])}, n {found.n:,})"

    return chart.chart(
        identifier,
        f"{what} from {path.first} to {path.second}",
        caption,
        f"{ends}. {said}".strip(),
        Axis("a", 0.0, 1.0),
        Axis(y_title, max(low, 0.0) if chords else min(low, 0.0), high),
        [*strokes, *lines],
        header=["a", *map(words, keys)],
        table=[[f"{p.alpha:.3g}", *(cell(p.values[k]) for k in keys)] for p in path.points]
        + [[f"{a:.3g}", *["not finite"] * len(keys)] for a in path.lost],
    )


def line_landscape(entry: Landscape, identifier: str) -> Figure:
    axis = entry.axes[0]
    keys = list(entry.points[0].losses)
    series = {
        k: [(p.at[0], math.nan if (v := p.losses[k]) is None else v) for p in entry.points]
        for k in keys
    }  # fmt: skip
    low, high = chart.domain(y for line in series.values() for _, y in line)
    up, signs = Axis("loss", max(low, 0.0), high), list(zip(entry.marks, _signs(entry), strict=True))
    top = up.high - 0.037 * (up.high - up.low)
    return chart.chart(
        identifier,
        f"Loss along {_short(axis.name)}",
        "Forget and retain loss along one direction through the run’s weights, which lie at 0.",
        "; ".join(_range(k, [y for _, y in line]) for k, line in series.items()),
        Axis(_axis_title(axis.name), axis.coordinates[0], axis.coordinates[-1]),
        up,
        [
            Strokes([(mark.at[0], up.low, mark.at[0], up.high) for mark in entry.marks], "here"),
            *chart.series({words(k): line for k, line in series.items()}),
            *(chart.Sign((mark.at[0], top), sign) for mark, sign in signs),
        ],
        legend=[Key(chart.rule_key(), sign, mark.name) for mark, sign in signs],
        header=["a", *map(words, keys)],
        table=[[f"{p.at[0]:.4g}", *(_loss(p.losses[k]) for k in keys)] for p in entry.points],
    )


def plane_landscape(entry: Landscape, key: str, identifier: str) -> Figure | None:
    """A heat map with contour lines, their values written on them."""
    xs, ys = (axis.coordinates for axis in entry.axes)
    found = {tuple(p.at): p.losses[key] for p in entry.points}
    grid = [[found[x, y] for x in xs] for y in ys]
    known = [v for row in grid for v in row if v is not None]
    if not known:
        return None
    half_x, half_y = (xs[1] - xs[0]) / 2, (ys[1] - ys[0]) / 2
    heat = chart.Heat(xs, ys, grid, levels(min(known), max(known), CLASSES))
    marks = [
        Mark((mark.at[0], mark.at[1]), "reference" if any(mark.at) else "after", "here-mark", sign)
        for mark, sign in zip(entry.marks, _signs(entry), strict=True)
    ]
    legend = [Key(chart.shade_key(f"heat-{i}"), "", text) for i, text in enumerate(_ranges(known, heat.edges))]
    legend += [
        Key(chart.mark_key(mark.shape, mark.class_), mark.sign, place.name)
        for mark, place in zip(marks, entry.marks, strict=True)
    ]
    if len(known) < len(xs) * len(ys):
        legend.append(Key(chart.shade_key("heat-none"), "", "not finite"))
    return chart.chart(
        identifier,
        f"{words(key).capitalize()} around the run",
        "Nats a token over the plane; contour lines where one shade gives way to the next, some with their value.",
        _range(key, known),
        Axis(_axis_title(entry.axes[0].name), xs[0] - half_x, xs[-1] + half_x),
        Axis(_axis_title(entry.axes[1].name), ys[0] - half_y, ys[-1] + half_y),
        [*marks, *heat.signs()],
        under=[heat],
        legend=legend,
        header=[f"{_short(entry.axes[1].name)} ↓  {_short(entry.axes[0].name)} →", *(f"{x:.3g}" for x in xs)],
        table=[[f"{y:.3g}", *(_loss(v) for v in row)] for y, row in zip(reversed(ys), reversed(grid), strict=True)],
    )


def sharpness_worst(entry: Sharpness, identifier: str) -> Figure:
    """The worst changes that were found within each radius."""
    lines = {}
    for key in entry.base:
        lines[f"{words(key)}, rise"] = [(r.radius, r.rise[key]) for r in entry.radii]
        lines[f"{words(key)}, fall"] = [(r.radius, -r.fall[key]) for r in entry.radii]
    return _over_radii(lines, {}, identifier, "At worst", "By how much an ascent within the radius changes each loss")


def sharpness_average(entry: Sharpness, identifier: str) -> Figure:
    """The average change under noise of each radius, with twice its standard error."""
    lines = {words(key): [(r.radius, r.average[key].value) for r in entry.radii] for key in entry.base}
    errors = {words(key): [r.average[key].standard_error or 0.0 for r in entry.radii] for key in entry.base}
    caption = "By how much Gaussian noise of that size changes each loss on average (upright: two standard errors)"
    return _over_radii(lines, errors, identifier, "On average", caption)


def _over_radii(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    errors: Mapping[str, Sequence[float]],
    identifier: str,
    what: str,
    caption: str,
) -> Figure:
    """Changes over the radius, from none at 0 on."""
    reach = [y for line in lines.values() for _, y in line]
    reach += [
        y + s * 2 * e for k, es in errors.items() for (_, y), e in zip(lines[k], es, strict=True) for s in (1, -1)
    ]
    low, high = min(0.0, *reach), max(0.0, *reach)
    room = 0.06 * (high - low) or 1.0
    radii = [x for x, _ in next(iter(lines.values()))]
    drawn = {name: [(0.0, 0.0), *line] for name, line in lines.items()}
    bars = {
        name: [(x, y - 2 * e, x, y + 2 * e) for (x, y), e in zip(lines[name], found, strict=True)]
        for name, found in errors.items()
    }
    spreads = [Strokes(found, f"spread series-{i}") for i, found in enumerate(bars.values())]
    return chart.chart(
        identifier,
        f"Change of loss: {what.lower()}",
        f"{caption}; 0 is the run itself.",
        "; ".join(f"{name} {number(line[-1][1])} at ρ = {number(line[-1][0])}" for name, line in lines.items()),
        Axis("ρ = size of the change", 0.0, max(radii)),
        Axis("change of loss", low - room, high + room),
        [Strokes([(0.0, 0.0, max(radii), 0.0)], "axis"), *spreads, *chart.series(drawn, lines)],
        header=["ρ", *lines],
        table=[[number(r), *(number(line[k][1]) for line in lines.values())] for k, r in enumerate(radii)],
    )


def reach(entry: Certificate, identifier: str) -> Figure | None:
    """Radii and displacements as points on one logarithmic axis: what lies left of R is certified."""
    found: list[tuple[str, float, str]] = [
        (f"R at σ = {number(one.sigma)}", one.together.radius, "radius")
        for one in entry.smoothed
        if one.together.radius > 0
    ]
    found += [(one.name, one.value, one.what) for one in entry.displacements if one.value]
    found += [(f"noise as a whole, σ√d, at σ = {number(one.sigma)}", one.noise_norm, "noise") for one in entry.smoothed]
    low, high = math.log10(min(v for _, v, _ in found)), math.log10(max(v for _, v, _ in found))
    low, high = math.floor(low - 0.2), math.ceil(high + 0.2)

    def share(value: float) -> float:
        return (math.log10(value) - low) / (high - low)

    best = max((one.together.radius for one in entry.smoothed), default=0.0)
    powers = range(low, high + 1, max(1, math.ceil((high - low) / 6)))
    marks = [(share(10.0**power), f"{10.0**power:g}" if -4 < power < 5 else f"1e{power}") for power in powers]
    shapes = {"radius": "survived", "attack": "lost", "unlearning": "before", "noise": "reference"}
    classes = {"radius": "reference", "attack": "attack", "unlearning": "before", "noise": "noise-mark"}
    names = {
        "radius": "certified radius R",
        "attack": "displacement by an attack",
        "unlearning": "displacement by unlearning itself",
        "noise": "size of the noise",
    }
    kinds = [what for what in names if any(what == one for _, _, one in found)]
    caption = "Sizes in weight space on a logarithmic axis. "
    caption += "What lies in the shaded part, left of R, is certified." if best > 0 else "Nothing is certified here."
    if entry.relative:
        caption += " All are in the rescaled metric: each tensor’s change over the root mean square of its weights."
    return chart.strips(
        identifier,
        "Certified radius and displacements",
        caption,
        "; ".join(f"{name} {number(value)}" for name, value, _ in found),
        [chart.Strip(name, number(v), share(v), classes[what], shapes[what]) for name, v, what in found],
        [(at, text.replace("-", "−")) for at, text in marks],
        shaded=share(best) if best > 0 else 0.0,
        longest=38,
        legend=[Key(chart.mark_key(shapes[k], classes[k]), "", names[k]) for k in kinds],
        header=["what", "size", "kind"],
        table=[[name, number(value), names[what]] for name, value, what in found],
    )


def _signs(entry: Landscape) -> list[str]:
    """Short names for the marks: the run itself, then letters."""
    return ["run", *(chr(ord("A") + i) for i in range(len(entry.marks) - 1))]


def _axis_title(name: str) -> str:
    return f"along {_short(name)}"


def _short(name: str) -> str:
    plain = name.partition(":")[0] if len(name) > 30 else name
    return plain if len(plain) <= 30 else f"{plain[:29]}…"


def _ranges(values: Sequence[float], edges: Sequence[float]) -> list[str]:
    bounds = [min(values), *edges, max(values)]
    return [f"{number(a)} to {number(b)}" for a, b in pairwise(bounds)]


def _range(key: str, values: Sequence[float]) -> str:
    finite = [v for v in values if math.isfinite(v)]
    return f"{words(key)} from {number(min(finite))} to {number(max(finite))}" if finite else f"{words(key)}: none"


def _loss(value: float | None) -> str:
    return MISSING if value is None else number(value)
