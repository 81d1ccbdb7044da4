"""Charts as data: what is shown is said by layers (lines, marks, bands, heat) and strips (bars, dots); the axes, ticks,
labels, legend, title for those who do not see it and the table behind it are made here, once.

A chart is inline SVG. Colours come from the page's style sheet by class, never from attributes, so that one drawing
serves light, dark and print. Everything that is written is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from markupsafe import Markup, escape

from letgo.report.contours import Segment, contour
from letgo.report.numbers import number

WIDTH, HEIGHT = 520, 340
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 18, 50
CHARACTER = 7.2
"""A label's width is taken as this many units a character."""


def tag(name: str, /, *children: str, **attributes: object) -> Markup:
    """One element. `class_` becomes class, underscores dashes; floats are cut to two decimals; None is left out."""
    parts = []
    for key, value in attributes.items():
        if value is None:
            continue
        text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else escape(value)
        parts.append(f' {key if key == "viewBox" else key.rstrip("_").replace("_", "-")}="{text}"')
    # Joined by hand, each part escaped: `Markup.format` takes most of the time of a page of many runs.
    return Markup(f"<{name}{''.join(parts)}>{''.join(map(escape, children))}</{name}>")


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values from `low` to `high`, about as many as asked for."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((power * factor for factor in (1, 2, 2.5, 5) if power * factor >= raw * 0.999), power * 10)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def domain(values: Iterable[float], *, close: bool = False) -> tuple[float, float]:
    """The axis for some values: 0 to 1 where they all lie there (`close`: from the tenth below the lowest on), else a
    little more than they span."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite or (min(finite) >= 0 and max(finite) <= 1):
        start = math.floor(min(finite) * 10 - 0.5) / 10 if close and finite else 0.0
        return (min(max(start, 0.0), 0.8), 1.0)
    low, high = min(finite), max(finite)
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return (low - room, high + room)


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`; of `whole` numbers (steps, bits) none is written between two."""

    title: str
    low: float
    high: float
    whole: bool = False

    def share(self, value: float) -> float:
        if not self.high > self.low:
            return 0.5
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)

    def ticks(self) -> list[float]:
        return [value for value in ticks(self.low, self.high) if not self.whole or value == round(value)]


@dataclass
class Plot:
    """A frame with two linear axes, in a view box of `WIDTH` × `HEIGHT`, that layers draw on."""

    across: Axis
    up: Axis
    parts: list[Markup] = field(default_factory=list)
    _taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def x(self, value: float) -> float:
        return LEFT + self.across.share(value) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - self.up.share(value) * (HEIGHT - TOP - BOTTOM)

    def add(self, *elements: Markup) -> None:
        self.parts.extend(elements)

    def axes(self) -> None:
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        grid = [f"M{self.x(value):.1f} {TOP}V{bottom}" for value in self.across.ticks()]
        grid += [f"M{LEFT} {self.y(value):.1f}H{right}" for value in self.up.ticks()]
        self.add(tag("path", class_="grid", d="".join(grid)))
        for value in self.across.ticks():
            at = self.x(value)
            self.add(tag("text", escape(_tick(value)), class_="tick", x=at, y=bottom + 18, text_anchor="middle"))
        for value in self.up.ticks():
            at = self.y(value)
            self.add(tag("text", escape(_tick(value)), class_="tick", x=LEFT - 8, y=at + 4, text_anchor="end"))
        middle, upright = (LEFT + right) / 2, (TOP + bottom) / 2
        self.add(
            tag("path", class_="axis", d=f"M{LEFT} {TOP}V{bottom}H{right}"),
            tag("text", escape(self.across.title), class_="title", x=middle, y=HEIGHT - 8, text_anchor="middle"),
            tag(
                "text",
                escape(self.up.title),
                class_="title",
                transform=f"translate(14 {upright:.0f}) rotate(-90)",
                text_anchor="middle",
            ),
        )

    def line(self, points: Sequence[tuple[float, float]], class_: str) -> None:
        """A line through data points; a non-finite one breaks it."""
        steps, pen_down = [], False
        for x, y in points:
            if not (math.isfinite(x) and math.isfinite(y)):
                pen_down = False
                continue
            steps.append(f"{'L' if pen_down else 'M'}{self.x(x):.1f} {self.y(y):.1f}")
            pen_down = True
        self.add(tag("path", class_=f"line {class_}", d="".join(steps)))

    def occupy(self, x: float, y: float, radius: float = 8.0) -> None:
        """Keep labels off a marker at this place (in drawing units)."""
        self._taken.append((x - radius, y - radius, x + radius, y + radius))

    def label(self, x: float, y: float, text: str, class_: str = "label") -> None:
        """Write `text` near a marker at (x, y), in the nearest free place inside the frame."""
        width, height = CHARACTER * len(text), 14.0
        # A value within a heat map is on a shade; a name may stand in the margin.
        most = WIDTH - RIGHT if class_ == "level" else WIDTH - 2
        places = [
            (dx * reach, dy * reach)
            for reach in (1.0, 1.7, 2.6, 3.6)
            for dx, dy in ((1, 0), (-1, 0), (0, -1), (0, 1), (0.8, -0.8), (-0.8, -0.8), (0.8, 0.8), (-0.8, 0.8))
        ]
        best: tuple[float, tuple[float, float, float, float]] | None = None
        for dx, dy in places:
            left = x + dx * 12 - (width if dx < 0 else width / 2 if dx == 0 else 0)
            top = y + dy * 14 - height / 2
            box = (left, top, left + width, top + height)
            inside = box[0] >= LEFT and box[2] <= most and box[1] >= 2 and box[3] <= HEIGHT - BOTTOM
            bad = sum(_overlap(box, other) for other in self._taken) + (0 if inside else 1000)
            if best is None or bad < best[0]:
                best = (bad, box)
            if bad == 0:
                break
        if best is None:
            return
        box = best[1]
        self._taken.append((box[0] - 5, box[1], box[2] + 5, box[3]))
        self.add(tag("text", escape(text), class_=class_, x=box[0], y=box[3] - 3))


Point = tuple[float, float]


class Layer(Protocol):
    def draw(self, plot: Plot) -> None: ...


@dataclass(frozen=True)
class Line:
    """A line through points, broken where one is not finite; `name` is what the legend calls it, `dots` are marked."""

    name: str
    points: Sequence[Point]
    class_: str
    dots: Sequence[Point] = ()

    def draw(self, plot: Plot) -> None:
        plot.line(self.points, self.class_)
        for x, y in self.points:
            if math.isfinite(y):
                plot.occupy(plot.x(x), plot.y(y), 6.0)
        for x, y in self.dots:
            plot.add(tag("circle", class_=f"dot {self.class_}", cx=plot.x(x), cy=plot.y(y), r=3.5))


def series(lines: Mapping[str, Sequence[Point]], dots: Mapping[str, Sequence[Point]] | None = None) -> list[Line]:
    """Lines by name, each with a stroke of its own."""
    marked = dots or {}
    return [Line(name, points, f"series-{i}", marked.get(name, ())) for i, (name, points) in enumerate(lines.items())]


@dataclass(frozen=True)
class Strokes:
    """Straight strokes between points (x0, y0, x1, y1), moved aside by some units, so that none hides another's."""

    segments: Sequence[Segment]
    class_: str
    shift: float = 0.0

    def draw(self, plot: Plot) -> None:
        ends = [(plot.x(a) + self.shift, plot.y(b), plot.x(c) + self.shift, plot.y(d)) for a, b, c, d in self.segments]
        path = "".join(f"M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}" for a, b, c, d in ends)
        plot.add(tag("path", class_=self.class_, d=path))


@dataclass(frozen=True)
class Mark:
    """A shape at a point; `hint` is shown under the pointer, `sign` beside it."""

    at: Point
    shape: str
    class_: str
    sign: str = ""
    hint: str = ""

    def draw(self, plot: Plot) -> None:
        x, y = plot.x(self.at[0]), plot.y(self.at[1])
        shape = marker(self.shape, x, y, self.class_)
        plot.add(tag("g", tag("title", escape(self.hint)), shape) if self.hint else shape)
        plot.occupy(x, y)


@dataclass(frozen=True)
class Sign:
    """A short text near a point."""

    at: Point
    text: str
    class_: str = "label"

    def draw(self, plot: Plot) -> None:
        plot.label(plot.x(self.at[0]), plot.y(self.at[1]), self.text, self.class_)


@dataclass(frozen=True)
class Band:
    """A stretch of the frame, hatched by a pattern (`hatch`)."""

    first: float
    last: float
    pattern: str

    def draw(self, plot: Plot) -> None:
        left, right = plot.x(self.first), plot.x(self.last)
        box = {"x": left, "y": TOP, "width": max(right - left, 1.0), "height": HEIGHT - TOP - BOTTOM}
        plot.add(tag("rect", class_="phase", **box), tag("rect", fill=f"url(#{self.pattern})", **box))


@dataclass(frozen=True)
class Heat:
    """A map of grid[row][column], None where there is no value, with contour lines at the `edges` between shades."""

    xs: Sequence[float]
    ys: Sequence[float]
    grid: Sequence[Sequence[float | None]]
    edges: Sequence[float]

    def contours(self) -> list[tuple[float, list[Segment]]]:
        """The levels that there are lines of, with their segments."""
        lines = [(level, contour(self.xs, self.ys, self.grid, level)) for level in self.edges]
        return [(level, segments) for level, segments in lines if segments]

    def signs(self) -> list[Sign]:
        """The values of the contour lines; of many every other one."""
        lines = self.contours()
        middles = [(level, segments[len(segments) // 2]) for level, segments in lines[:: 2 if len(lines) > 4 else 1]]
        return [Sign(((a + c) / 2, (b + e) / 2), number(level), "level") for level, (a, b, c, e) in middles]

    def draw(self, plot: Plot) -> None:
        half_x, half_y = (self.xs[1] - self.xs[0]) / 2, (self.ys[1] - self.ys[0]) / 2
        cells: dict[str, list[str]] = {}
        for y, row in zip(self.ys, self.grid, strict=True):
            top, height = plot.y(y + half_y), plot.y(y - half_y) - plot.y(y + half_y)
            for x, value in zip(self.xs, row, strict=True):
                left, width = plot.x(x - half_x), plot.x(x + half_x) - plot.x(x - half_x)
                # A hair wider than the cell, so that no gap of the page shows between two.
                box = f"M{left:.1f} {top:.1f}h{width + 0.3:.1f}v{height + 0.3:.1f}h{-width - 0.3:.1f}z"
                shade = "none" if value is None else sum(value >= edge for edge in self.edges)
                cells.setdefault(f"heat-{shade}", []).append(box)
        for class_, boxes in sorted(cells.items()):
            plot.add(tag("path", class_=f"heat {class_}", d="".join(boxes)))
        for _, segments in self.contours():
            Strokes(segments, "contour").draw(plot)


@dataclass(frozen=True)
class Key:
    """One entry of a drawing's legend: a sample of the mark, its short sign in the drawing, and what it is."""

    sample: Markup
    sign: str
    text: str


@dataclass(frozen=True)
class Figure:
    """A drawing with its legend, and the data table behind it."""

    identifier: str
    title: str
    caption: str
    drawing: Markup
    legend: Sequence[Key]
    header: Sequence[str]
    table: Sequence[Sequence[str]]


def chart(
    identifier: str,
    title: str,
    caption: str,
    told: str,
    across: Axis,
    up: Axis,
    layers: Sequence[Layer],
    *,
    header: Sequence[str],
    table: Sequence[Sequence[str]],
    under: Sequence[Layer] = (),
    legend: Sequence[Key] = (),
    definitions: Sequence[Markup] = (),
) -> Figure:
    """A figure of layers over two axes.

    Args:
        told: what it shows, for those who do not see it.
        under: layers beneath the grid.
        legend: what follows the lines that have a name.
        definitions: patterns that layers name.
    """
    plot = Plot(across, up)
    for layer in under:
        layer.draw(plot)
    plot.axes()
    signs = [Sign(layer.at, layer.sign) for layer in layers if isinstance(layer, Mark) and layer.sign]
    signs += [layer for layer in layers if isinstance(layer, Sign)]
    # Texts last: they keep clear of every shape.
    for layer in (*(layer for layer in layers if not isinstance(layer, Sign)), *signs):
        layer.draw(plot)
    keys = [Key(line_key(line.class_), "", line.name) for line in layers if isinstance(line, Line)]
    parts = [*([tag("defs", *definitions)] if definitions else []), *plot.parts]
    drawn = drawing(identifier, title, told, parts, HEIGHT)
    return Figure(identifier, title, caption, drawn, [*keys, *legend], header, table)


@dataclass(frozen=True)
class Strip:
    """A row of its own: a name, a value at its end, and beneath them a bar over a share of the length with a line at
    its threshold, or a shape at that share."""

    name: str
    value: str
    share: float
    class_: str
    shape: str = ""
    threshold: float = 0.0

    def draw(self, y: float, left: float, scale: float) -> list[Markup]:
        if self.shape:
            track = tag("line", class_="track-line", x1=left, x2=left + scale, y1=y + 26, y2=y + 26)
            return [track, marker(self.shape, left + self.share * scale, y + 26, self.class_)]
        width, at = max(self.share * scale, 2.0), left + self.threshold * scale
        return [
            tag("rect", class_="track", x=left, y=y + 17, width=scale, height=14, rx=2),
            tag("rect", class_=f"bar {self.class_}", x=left, y=y + 17, width=width, height=14, rx=2),
            tag("line", class_="threshold", x1=at, x2=at, y1=y + 13, y2=y + 35),
        ]


def strips(
    identifier: str,
    title: str,
    caption: str,
    told: str,
    rows: Sequence[Strip],
    marks: Sequence[tuple[float, str]],
    *,
    header: Sequence[str],
    table: Sequence[Sequence[str]],
    legend: Sequence[Key] = (),
    shaded: float = 0.0,
    longest: int = 46,
) -> Figure:
    """A figure of strips under one axis.

    Args:
        marks: share of the length and text of each tick, from left to right.
        shaded: the share that is shaded, from the left.
        longest: characters of a name.
    """
    left, top, above, label, foot = (16.0, 34, 16, 12, 8) if rows[0].shape else (12.0, 30, 14, 10, 14)
    right = WIDTH - 20.0
    scale, step = right - left, 46
    height = top + step * len(rows) + foot
    parts = []
    if shaded > 0:
        box = {"x": left, "y": float(top - 8), "width": shaded * scale, "height": float(height - top + 8)}
        parts.append(tag("rect", class_="certified", **box))
    for place, (share, text) in enumerate(marks):
        at = left + share * scale
        anchor = "start" if place == 0 else "end" if share >= 1 else "middle"
        parts.append(tag("line", class_="grid", x1=at, x2=at, y1=top - 8, y2=height))
        parts.append(tag("text", escape(text), class_="tick", x=at, y=top - above, text_anchor=anchor))
    for place, row in enumerate(rows):
        y, name = top + place * step, row.name if len(row.name) <= longest else f"{row.name[: longest - 1]}…"
        parts += [
            tag("text", escape(name), class_="label", x=left, y=y + label),
            tag("text", escape(row.value), class_="label", x=right, y=y + label, text_anchor="end"),
            *row.draw(y, left, scale),
        ]
    return Figure(identifier, title, caption, drawing(identifier, title, told, parts, height), legend, header, table)


def drawing(identifier: str, title: str, told: str, parts: Sequence[Markup], height: float) -> Markup:
    """The whole drawing, named for those who do not see it."""
    return tag(
        "svg",
        tag("title", escape(title), id=f"{identifier}-title"),
        tag("desc", escape(told), id=f"{identifier}-desc"),
        *parts,
        viewBox=f"0 0 {WIDTH} {height}",
        role="img",
        aria_labelledby=f"{identifier}-title {identifier}-desc",
    )


def line_key(class_: str) -> Markup:
    """A stretch of a line of some class, for a legend."""
    return _key(tag("path", class_=f"line {class_}", d="M1 10H29"), width=30)


def mark_key(shape: str, class_: str) -> Markup:
    return _key(marker(shape, 10, 10, class_))


def rule_key() -> Markup:
    return _key(tag("line", class_="here", x1=10, x2=10, y1=1, y2=19))


def shade_key(class_: str) -> Markup:
    return _key(tag("rect", class_=f"heat {class_} swatch", x=1, y=3, width=18, height=14))


def band_key(pattern: str) -> Markup:
    box = {"x": 1, "y": 3, "width": 28, "height": 14}
    return _key(
        tag("defs", hatch(pattern)),
        tag("rect", class_="phase", **box),
        tag("rect", fill=f"url(#{pattern})", **box),
        width=30,
    )


def hatch(identifier: str) -> Markup:
    """The pattern of a `Band`."""
    stroke = tag("line", class_="hatch", x1=0, y1=0, x2=0, y2=7)
    frame = {"patternUnits": "userSpaceOnUse", "patternTransform": "rotate(45)"}
    return tag("pattern", stroke, id=identifier, width=7, height=7, **frame)


def _key(*shapes: Markup, width: int = 20) -> Markup:
    return tag("svg", *shapes, class_="key", viewBox=f"0 0 {width} 20", aria_hidden="true")


def marker(kind: str, x: float, y: float, class_: str) -> Markup:
    """A shape for each kind of point, so that none is told by colour alone."""
    shapes = {
        "before": tag("circle", class_=f"mark hollow {class_}", cx=x, cy=y, r=6),
        "after": tag("circle", class_=f"mark {class_}", cx=x, cy=y, r=6),
        "reference": tag("path", class_=f"mark {class_}", d=f"M{x:.1f} {y - 8:.1f}l8 8l-8 8l-8 -8z"),
        "survived": tag("rect", class_=f"mark {class_}", x=x - 5.5, y=y - 5.5, width=11, height=11),
    }
    cross = tag("path", class_=f"mark open {class_}", d=f"M{x - 6:.1f} {y - 6:.1f}l12 12m0 -12l-12 12")
    return shapes.get(kind, cross)


def _tick(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.4f}".rstrip("0").rstrip(".").replace("-", "−")
    return number(value)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
