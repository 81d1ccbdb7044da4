"""Drawings of analyses: lines between models, landscapes, sharpness, and a certificate's reach."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from letgo.analysis.records import Certificate, Landscape, LinearPath, Sharpness
from letgo.report.chart import Axis, Figure, Plot, Strip, Strips, domain
from letgo.report.contours import levels
from letgo.report.numbers import MISSING, number, words
from letgo.report.svg import mark_key, rule_key, shade_key
from letgo.report.table import is_share
from letgo.runs.results import Metric

SHADES = 8
"""Of a heat map."""


def path_figures(path: LinearPath, identifier: str) -> list[Figure]:
    """The losses over a, and the scores, where there are any."""
    losses = [key for key in path.barriers if key.endswith("_loss")]
    scores = [key for prefix in ("forget_", "retain_") for key in path.barriers if is_share(key, prefix)]
    figures = []
    if losses:
        figures.append(_along(path, losses, f"{identifier}-losses", chords=True))
    if scores:
        figures.append(_along(path, scores, f"{identifier}-scores", chords=False))
    return figures


def _along(path: LinearPath, keys: Sequence[str], identifier: str, *, chords: bool) -> Figure:
    """Quantities over a, each with its 95 % interval. `chords`: they are losses, drawn with the straight line between
    their ends and described with their barriers."""
    first, last = path.points[0], path.points[-1]
    values = [v for p in path.points for k in keys for v in (*p.values[k].ci95, p.values[k].value) if math.isfinite(v)]
    low, high = domain(values)
    title = "loss (nats a token)" if chords else "score"
    plot = Plot(Axis("a", 0.0, 1.0), Axis(title, max(low, 0.0) if chords else min(low, 0.0), high))
    for index, key in enumerate(keys):
        if chords:
            chord = (first.alpha, first.values[key].value, last.alpha, last.values[key].value)
            plot.strokes([chord], f"line chord series-{index}")
        spreads = [(p.alpha, p.values[key].ci95[0], p.alpha, p.values[key].ci95[1]) for p in path.points]
        finite = [spread for spread in spreads if all(map(math.isfinite, spread))]
        # Moved aside, so that no interval hides another one.
        plot.strokes(finite, f"spread series-{index}", 3.0 * (index - (len(keys) - 1) / 2))
    # What broke between two points is no line.
    lost = [(a, math.nan) for a in path.lost]
    plot.curves({words(key): sorted([*((p.alpha, p.values[key].value) for p in path.points), *lost]) for key in keys})
    ends = [f"{words(k)} from {number(first.values[k].value)} to {number(last.values[k].value)}" for k in keys]
    description = f"{'; '.join(ends)}."
    caption = f"At (1 − a) · {path.first} + a · {path.second}. Upright lines are 95 % intervals"
    if chords:
        barriers = [f"barrier of the {words(key)} {number(path.barriers[key].rise)}" for key in keys]
        description += f" {'; '.join(barriers)}"
        caption += "; thin lines join the ends: what rises above them is the barrier."
    else:
        caption += "."
    table = [[f"{p.alpha:.3g}", *(_with_interval(p.values[k]) for k in keys)] for p in path.points]
    return Figure(
        plot,
        identifier,
        f"{'Losses' if chords else 'Scores'} from {path.first} to {path.second}",
        caption,
        description,
        header=["a", *map(words, keys)],
        table=table + [[f"{a:.3g}", *["not finite"] * len(keys)] for a in path.lost],
    )


def _with_interval(metric: Metric) -> str:
    low, high = metric.ci95
    return f"{number(metric.value)} ({number(low)} to {number(high)}, n {metric.n:,})"


def line_landscape(entry: Landscape, identifier: str) -> Figure:
    axis, keys = entry.axes[0], list(entry.points[0].losses)
    lines = {key: [(p.at[0], math.nan if (y := p.losses[key]) is None else y) for p in entry.points] for key in keys}
    low, high = domain(y for line in lines.values() for _, y in line)
    up, signs = Axis("loss", max(low, 0.0), high), list(zip(entry.marks, _signs(entry), strict=True))
    plot = Plot(Axis(f"along {_short(axis.name)}", axis.coordinates[0], axis.coordinates[-1]), up)
    plot.strokes([(mark.at[0], up.low, mark.at[0], up.high) for mark in entry.marks], "here")
    plot.curves({words(key): line for key, line in lines.items()})
    for mark, sign in signs:
        plot.sign((mark.at[0], up.high - 0.037 * (up.high - up.low)), sign)
        plot.legend.append(rule_key(mark.name, sign))
    return Figure(
        plot,
        identifier,
        f"Loss along {_short(axis.name)}",
        "Forget and retain loss along one direction through the run’s weights, which lie at 0.",
        "; ".join(_range(key, [y for _, y in line]) for key, line in lines.items()),
        header=["a", *map(words, keys)],
        table=[[f"{p.at[0]:.4g}", *(_loss(p.losses[k]) for k in keys)] for p in entry.points],
    )


def plane_landscape(entry: Landscape, key: str, identifier: str) -> Figure | None:
    """A heat map with contour lines, their values written on them."""
    xs, ys = (axis.coordinates for axis in entry.axes)
    across, up = (_short(axis.name) for axis in entry.axes)
    losses = {tuple(point.at): point.losses[key] for point in entry.points}
    grid = [[losses[x, y] for x in xs] for y in ys]
    known = [loss for row in grid for loss in row if loss is not None]
    if not known:
        return None
    half_x, half_y = (xs[1] - xs[0]) / 2, (ys[1] - ys[0]) / 2
    plot = Plot(
        Axis(f"along {across}", xs[0] - half_x, xs[-1] + half_x), Axis(f"along {up}", ys[0] - half_y, ys[-1] + half_y)
    )
    edges = levels(min(known), max(known), SHADES)
    bounds = [number(bound) for bound in (min(known), *edges, max(known))]
    plot.legend = [shade_key(f"heat-{i}", f"{low} to {high}") for i, (low, high) in enumerate(pairwise(bounds))]
    for mark, sign in zip(entry.marks, _signs(entry), strict=True):
        shape = "reference" if any(mark.at) else "after"
        plot.mark((mark.at[0], mark.at[1]), shape, "here-mark", sign, name=mark.name)
    plot.heat(xs, ys, grid, edges)
    if len(known) < len(xs) * len(ys):
        plot.legend.append(shade_key("heat-none", "not finite"))
    return Figure(
        plot,
        identifier,
        f"{words(key).capitalize()} around the run",
        "Nats a token over the plane; contour lines where one shade gives way to the next, some with their value.",
        _range(key, known),
        header=[f"{up} ↓  {across} →", *(f"{x:.3g}" for x in xs)],
        table=[[f"{y:.3g}", *map(_loss, row)] for y, row in zip(reversed(ys), reversed(grid), strict=True)],
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
    bars = [
        [(x, y - 2 * e, x, y + 2 * e) for (x, y), e in zip(lines[name], deviations, strict=True)]
        for name, deviations in errors.items()
    ]
    reach = [y for line in lines.values() for _, y in line]
    reach += [y for spread in bars for _, bottom, _, top in spread for y in (bottom, top)]
    low, high = min(0.0, *reach), max(0.0, *reach)
    room = 0.06 * (high - low) or 1.0
    radii = [x for x, _ in next(iter(lines.values()))]
    plot = Plot(Axis("ρ = size of the change", 0.0, max(radii)), Axis("change of loss", low - room, high + room))
    plot.strokes([(0.0, 0.0, max(radii), 0.0)], "axis")
    for index, spread in enumerate(bars):
        plot.strokes(spread, f"spread series-{index}")
    plot.curves({name: [(0.0, 0.0), *line] for name, line in lines.items()}, lines)
    return Figure(
        plot,
        identifier,
        f"Change of loss: {what.lower()}",
        f"{caption}; 0 is the run itself.",
        "; ".join(f"{name} {number(line[-1][1])} at ρ = {number(line[-1][0])}" for name, line in lines.items()),
        header=["ρ", *lines],
        table=[[number(r), *(number(line[k][1]) for line in lines.values())] for k, r in enumerate(radii)],
    )


SIZES = {
    "radius": ("survived", "reference", "certified radius R"),
    "attack": ("lost", "attack", "displacement by an attack"),
    "unlearning": ("before", "before", "displacement by unlearning itself"),
    "noise": ("reference", "noise-mark", "size of the noise"),
}
"""What a certificate's sizes are of: shape and class of the mark, and its name."""


def reach(entry: Certificate, identifier: str) -> Figure:
    """Radii and displacements as points on one logarithmic axis: what lies left of R is certified."""
    radii = [(smoothed.sigma, smoothed.together.radius) for smoothed in entry.smoothed]
    sizes: list[tuple[str, float, str]] = [(f"R at σ = {number(s)}", r, "radius") for s, r in radii if r > 0]
    sizes += [(moved.name, moved.value, moved.what) for moved in entry.displacements if moved.value]
    sizes += [(f"noise as a whole, σ√d, at σ = {number(s.sigma)}", s.noise_norm, "noise") for s in entry.smoothed]
    low, high = math.log10(min(v for _, v, _ in sizes)), math.log10(max(v for _, v, _ in sizes))
    low, high = math.floor(low - 0.2), math.ceil(high + 0.2)

    def share(value: float) -> float:
        return (math.log10(value) - low) / (high - low)

    best = max((radius for _, radius in radii), default=0.0)
    ticks = [
        (share(10.0**power), (f"{10.0**power:g}" if -4 < power < 5 else f"1e{power}").replace("-", "−"))
        for power in range(low, high + 1, max(1, math.ceil((high - low) / 6)))
    ]
    caption = "Sizes in weight space on a logarithmic axis. "
    caption += "What lies in the shaded part, left of R, is certified." if best > 0 else "Nothing is certified here."
    if entry.relative:
        caption += " All are in the rescaled metric: each tensor’s change over the root mean square of its weights."
    dots = [Strip(name, number(v), share(v), class_=SIZES[kind][1], shape=SIZES[kind][0]) for name, v, kind in sizes]
    strips = Strips(dots, ticks, shaded=share(best) if best > 0 else 0.0, longest=38)
    strips.legend = [mark_key(*SIZES[kind]) for kind in SIZES if any(kind == present for _, _, present in sizes)]
    return Figure(
        strips,
        identifier,
        "Certified radius and displacements",
        caption,
        "; ".join(f"{name} {number(value)}" for name, value, _ in sizes),
        header=["what", "size", "kind"],
        table=[[name, number(value), SIZES[kind][2]] for name, value, kind in sizes],
    )


def _signs(entry: Landscape) -> list[str]:
    """Short names for the marks: the run itself, then letters."""
    return ["run", *(chr(ord("A") + i) for i in range(len(entry.marks) - 1))]


def _short(name: str) -> str:
    plain = name.partition(":")[0] if len(name) > 30 else name
    return plain if len(plain) <= 30 else f"{plain[:29]}…"


def _range(key: str, values: Sequence[float]) -> str:
    finite = [v for v in values if math.isfinite(v)]
    return f"{words(key)} from {number(min(finite))} to {number(max(finite))}" if finite else f"{words(key)}: none"


def _loss(value: float | None) -> str:
    return MISSING if value is None else number(value)
