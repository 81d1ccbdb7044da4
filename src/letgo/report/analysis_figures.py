"""Drawings of analyses: lines between models, landscapes, sharpness, and a certificate's reach."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from markupsafe import Markup, escape

from letgo.analysis.records import Certificate, Landscape, LinearPath, Sharpness
from letgo.report import svg
from letgo.report.contours import contour, levels
from letgo.report.figures import Figure, Key, line_sample
from letgo.report.numbers import MISSING, number, words
from letgo.report.svg import BOTTOM, HEIGHT, TOP, WIDTH, Plot, marker, tag
from letgo.report.table import is_share

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
    low, high = svg.domain(bounds)
    plot = Plot((0.0, 1.0), (min(low, 0.0) if not chords else max(low, 0.0), high), "a", y_title)
    plot.axes()
    for place, key in enumerate(keys):
        points = [(p.alpha, p.values[key].value) for p in path.points]
        # What broke between two points is no line.
        lost = [(a, math.nan) for a in path.lost]
        if chords:
            plot.line([points[0], points[-1]], f"chord series-{place}")
        for p in path.points:
            bottom, top = p.values[key].ci95
            if math.isfinite(bottom) and math.isfinite(top):
                # Beside each other, so that none hides another.
                x = plot.x(p.alpha) + 3.0 * (place - (len(keys) - 1) / 2)
                d = f"M{x:.1f} {plot.y(bottom):.1f}V{plot.y(top):.1f}"
                plot.add(tag("path", class_=f"spread series-{place}", d=d))
        plot.line(sorted([*points, *lost]), f"series-{place}")
    title = f"{what} from {path.first} to {path.second}"
    ends = "; ".join(
        f"{words(k)} from {number(path.points[0].values[k].value)} to {number(path.points[-1].values[k].value)}"
        for k in keys
    )
    legend = [Key(line_sample(f"series-{i}"), "", words(key)) for i, key in enumerate(keys)]
    caption = f"At (1 − a) · {path.first} + a · {path.second}. Upright lines are 95 % intervals"
    caption += "; thin lines join the ends: what rises above them is the barrier." if chords else "."
    table = [
        [
            f"{p.alpha:.3g}",
            *(
                f"{number(p.values[k].value)} ({number(p.values[k].ci95[0])} to {number(p.values[k].ci95[1])}, "
                f"n {p.values[k].n:,})"
                for k in keys
            ),
        ]
        for p in path.points
    ] + [[f"{a:.3g}", *["not finite"] * len(keys)] for a in path.lost]
    told = f"{ends}. {said}".strip()
    return Figure(
        identifier, title, caption, plot.render(identifier, title, told), legend, ["a", *map(words, keys)], table
    )


def line_landscape(entry: Landscape, identifier: str) -> Figure:
    axis = entry.axes[0]
    keys = list(entry.points[0].losses)
    series = {
        k: [(p.at[0], math.nan if (v := p.losses[k]) is None else v) for p in entry.points]
        for k in keys
    }  # fmt: skip
    low, high = svg.domain(y for line in series.values() for _, y in line)
    plot = Plot((axis.coordinates[0], axis.coordinates[-1]), (max(low, 0.0), high), _axis_title(axis.name), "loss")
    plot.axes()
    for mark in entry.marks:
        at = plot.x(mark.at[0])
        plot.add(tag("line", class_="here", x1=at, x2=at, y1=float(TOP), y2=float(HEIGHT - BOTTOM)))
    for place, line in enumerate(series.values()):
        plot.line(line, f"series-{place}")
        for x, y in line:
            if math.isfinite(y):
                plot.occupy(plot.x(x), plot.y(y), 6.0)
    signs = _signs(entry)
    for mark, sign in zip(entry.marks, signs, strict=True):
        plot.label(plot.x(mark.at[0]), TOP + 10.0, sign)
    title = f"Loss along {_short(axis.name)}"
    legend = [Key(line_sample(f"series-{i}"), "", words(k)) for i, k in enumerate(keys)]
    legend += [Key(_upright_sample(), s, m.name) for m, s in zip(entry.marks, signs, strict=True)]
    told = "; ".join(_range(k, [y for _, y in line]) for k, line in series.items())
    return Figure(
        identifier,
        title,
        "Forget and retain loss along one direction through the run’s weights, which lie at 0.",
        plot.render(identifier, title, told),
        legend,
        ["a", *map(words, keys)],
        [[f"{p.at[0]:.4g}", *(_loss(p.losses[k]) for k in keys)] for p in entry.points],
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
    plot = Plot(
        (xs[0] - half_x, xs[-1] + half_x),
        (ys[0] - half_y, ys[-1] + half_y),
        _axis_title(entry.axes[0].name),
        _axis_title(entry.axes[1].name),
    )
    edges = levels(min(known), max(known), CLASSES)
    cells: dict[str, list[str]] = {}
    for y, row in zip(ys, grid, strict=True):
        top, height = plot.y(y + half_y), plot.y(y - half_y) - plot.y(y + half_y)
        for x, value in zip(xs, row, strict=True):
            left, width = plot.x(x - half_x), plot.x(x + half_x) - plot.x(x - half_x)
            # A hair wider than the cell, so that no gap of the page shows between two.
            box = f"M{left:.1f} {top:.1f}h{width + 0.3:.1f}v{height + 0.3:.1f}h{-width - 0.3:.1f}z"
            cells.setdefault("heat-none" if value is None else f"heat-{_class(value, edges)}", []).append(box)
    for class_, boxes in sorted(cells.items()):
        plot.add(tag("path", class_=f"heat {class_}", d="".join(boxes)))
    places = []
    for level in edges:
        lines = contour(xs, ys, grid, level)
        if not lines:
            continue
        d = "".join(f"M{plot.x(a):.1f} {plot.y(b):.1f}L{plot.x(c):.1f} {plot.y(e):.1f}" for a, b, c, e in lines)
        plot.add(tag("path", class_="contour", d=d))
        places.append((level, lines))
    plot.axes()
    signs = _signs(entry)
    for mark in entry.marks:
        x, y = plot.x(mark.at[0]), plot.y(mark.at[1])
        plot.add(marker("after" if not any(mark.at) else "reference", x, y, "here-mark"))
        plot.occupy(x, y)
    for mark, sign in zip(entry.marks, signs, strict=True):
        plot.label(plot.x(mark.at[0]), plot.y(mark.at[1]), sign, "label")
    for level, lines in places[:: 2 if len(places) > 4 else 1]:
        a, b, c, e = lines[len(lines) // 2]
        plot.label(plot.x((a + c) / 2), plot.y((b + e) / 2), number(level), "level")
    title = f"{words(key).capitalize()} around the run"
    legend = [Key(_swatch(f"heat-{i}"), "", text) for i, text in enumerate(_ranges(known, edges))]
    legend += [
        Key(_mark_sample("after" if not any(m.at) else "reference"), s, m.name)
        for m, s in zip(entry.marks, signs, strict=True)
    ]
    if len(known) < len(xs) * len(ys):
        legend.append(Key(_swatch("heat-none"), "", "not finite"))
    return Figure(
        identifier,
        title,
        "Nats a token over the plane; contour lines where one shade gives way to the next, some with their value.",
        plot.render(identifier, title, _range(key, known)),
        legend,
        [f"{_short(entry.axes[1].name)} ↓  {_short(entry.axes[0].name)} →", *(f"{x:.3g}" for x in xs)],
        [[f"{y:.3g}", *(_loss(v) for v in row)] for y, row in zip(reversed(ys), reversed(grid), strict=True)],
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
    plot = Plot((0.0, max(radii)), (low - room, high + room), "ρ = size of the change", "change of loss")
    plot.axes()
    plot.add(tag("path", class_="axis", d=f"M{plot.x(0.0):.1f} {plot.y(0.0):.1f}H{plot.x(max(radii)):.1f}"))
    for place, (name, line) in enumerate(lines.items()):
        for (x, y), error in zip(line, errors.get(name, ()), strict=False):
            d = f"M{plot.x(x):.1f} {plot.y(y - 2 * error):.1f}V{plot.y(y + 2 * error):.1f}"
            plot.add(tag("path", class_=f"spread series-{place}", d=d))
        plot.line([(0.0, 0.0), *line], f"series-{place}")
        for x, y in line:
            plot.add(tag("circle", class_=f"dot series-{place}", cx=plot.x(x), cy=plot.y(y), r=3.5))
    title = f"Change of loss: {what.lower()}"
    told = "; ".join(f"{name} {number(line[-1][1])} at ρ = {number(line[-1][0])}" for name, line in lines.items())
    return Figure(
        identifier,
        title,
        f"{caption}; 0 is the run itself.",
        plot.render(identifier, title, told),
        [Key(line_sample(f"series-{i}"), "", name) for i, name in enumerate(lines)],
        ["ρ", *lines],
        [[number(r), *(number(line[k][1]) for line in lines.values())] for k, r in enumerate(radii)],
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
    step, top, left, right = 46, 34, 16.0, WIDTH - 20.0
    height = top + step * len(found) + 8

    def across(value: float) -> float:
        return left + (math.log10(value) - low) / (high - low) * (right - left)

    title = "Certified radius and displacements"
    told = "; ".join(f"{name} {number(value)}" for name, value, _ in found)
    parts = [
        tag("title", escape(title), id=f"{identifier}-title"),
        tag("desc", escape(told), id=f"{identifier}-desc"),
    ]
    best = max((one.together.radius for one in entry.smoothed), default=0.0)
    if best > 0:
        box = {"x": left, "y": float(top - 8), "width": across(best) - left, "height": float(height - top + 8)}
        parts.append(tag("rect", class_="certified", **box))
    every = max(1, math.ceil((high - low) / 6))
    for power in range(low, high + 1, every):
        at, anchor = across(10.0**power), "start" if power == low else "end" if power == high else "middle"
        parts.append(tag("line", class_="grid", x1=at, x2=at, y1=top - 8, y2=height))
        text = f"{10.0**power:g}" if -4 < power < 5 else f"1e{power}"
        parts.append(tag("text", escape(text.replace("-", "−")), class_="tick", x=at, y=top - 16, text_anchor=anchor))
    shapes = {"radius": "survived", "attack": "lost", "unlearning": "before", "noise": "reference"}
    classes = {"radius": "reference", "attack": "attack", "unlearning": "before", "noise": "noise-mark"}
    for place, (name, value, what) in enumerate(found):
        y = top + place * step
        shown = name if len(name) <= 38 else f"{name[:37]}…"
        parts += [
            tag("text", escape(shown), class_="label", x=left, y=y + 12),
            tag("text", escape(number(value)), class_="label", x=right, y=y + 12, text_anchor="end"),
            tag("line", class_="track-line", x1=left, x2=right, y1=y + 26, y2=y + 26),
            marker(shapes[what], across(value), y + 26, classes[what]),
        ]
    drawing = tag(
        "svg",
        *parts,
        viewBox=f"0 0 {WIDTH} {height}",
        role="img",
        aria_labelledby=f"{identifier}-title {identifier}-desc",
    )
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
    return Figure(
        identifier,
        title,
        caption,
        drawing,
        [Key(_key(marker(shapes[k], 10, 10, classes[k])), "", names[k]) for k in kinds],
        ["what", "size", "kind"],
        [[name, number(value), names[what]] for name, value, what in found],
    )


def _signs(entry: Landscape) -> list[str]:
    """Short names for the marks: the run itself, then letters."""
    return ["run", *(chr(ord("A") + i) for i in range(len(entry.marks) - 1))]


def _axis_title(name: str) -> str:
    return f"along {_short(name)}"


def _short(name: str) -> str:
    plain = name.partition(":")[0] if len(name) > 30 else name
    return plain if len(plain) <= 30 else f"{plain[:29]}…"


def _class(value: float, edges: Sequence[float]) -> int:
    return sum(value >= edge for edge in edges)


def _ranges(values: Sequence[float], edges: Sequence[float]) -> list[str]:
    bounds = [min(values), *edges, max(values)]
    return [f"{number(a)} to {number(b)}" for a, b in pairwise(bounds)]


def _range(key: str, values: Sequence[float]) -> str:
    finite = [v for v in values if math.isfinite(v)]
    return f"{words(key)} from {number(min(finite))} to {number(max(finite))}" if finite else f"{words(key)}: none"


def _loss(value: float | None) -> str:
    return MISSING if value is None else number(value)


def _key(*shapes: Markup, width: int = 20) -> Markup:
    return tag("svg", *shapes, class_="key", viewBox=f"0 0 {width} 20", aria_hidden="true")


def _upright_sample() -> Markup:
    return _key(tag("line", class_="here", x1=10, x2=10, y1=1, y2=19))


def _swatch(class_: str) -> Markup:
    return _key(tag("rect", class_=f"heat {class_} swatch", x=1, y=3, width=18, height=14))


def _mark_sample(kind: str) -> Markup:
    return _key(marker(kind, 10, 10, "here-mark"))
