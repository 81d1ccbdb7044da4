"""Charts as inline SVG: a plot with two axes, strips under one, or a matrix of cells; each with its legend, a
description for those who do not see it, and the data table behind it.

Colours come from the page's style sheet by class, never from attributes, so that one drawing serves light, dark and
print. All text is escaped.
"""

from __future__ import annotations

import base64
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markupsafe import Markup

from letgo.core.errors import UserError, not_writable
from letgo.core.files import write_text
from letgo.core.terminal import visible
from letgo.report.assets import asset
from letgo.report.contours import Segment, contour
from letgo.report.numbers import number
from letgo.report.svg import Key, hatch, hatched, line_key, mark_key, marker, tag

WIDTH, HEIGHT = 520, 340
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 18, 50
LEGEND_ROW = 22
"""A row of the legend beneath a drawing that stands alone."""
LONGEST_LEGEND = 62
"""Characters of such a row."""
CHARACTER = 7.2
"""A label's width is taken as this many units a character."""
LARGE, LINE = 9.6, 18.0
"""The same of the largest letters that the style sheet sets (on narrow screens), and the height of a line of them."""

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


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


@cache
def chart_style() -> Markup:
    """Of the page's style sheet what concerns a drawing: the colours, light and dark, and how each class looks."""
    sheet = asset("report.css")
    light, dark = re.findall(r"^ *:root \{.*?\}", sheet, re.DOTALL | re.MULTILINE)[:2]
    rules = re.findall(r"^svg .*?\}.*$", sheet, re.MULTILINE)
    paper = "svg .paper { fill: var(--card); }"
    return Markup("\n".join([light, f"@media (prefers-color-scheme: dark) {{ {dark} }}", paper, *rules]))


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`; a `whole` one (steps, bits) has ticks at whole numbers alone."""

    title: str
    low: float
    high: float
    whole: bool = False

    def share(self, value: float) -> float:
        if not self.high > self.low:
            return 0.5
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)

    def ticks(self) -> list[float]:
        """About five round values."""
        span = self.high - self.low
        if span <= 0 or not math.isfinite(span):
            return [self.low]
        raw = span / 5
        power = 10.0 ** math.floor(math.log10(raw))
        step = next((power * factor for factor in (1, 2, 2.5, 5) if power * factor >= raw * 0.999), power * 10)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        values = [index * step for index in range(first, last + 1)]
        return [value for value in values if not self.whole or value == round(value)]


@dataclass(frozen=True, repr=False)
class Figure:
    """A drawing with a description for those who do not see it, and the data table behind it."""

    plot: Plot | Strips | Matrix
    identifier: str
    title: str
    caption: str
    description: str
    header: Sequence[str]
    table: Sequence[Sequence[str]]

    @property
    def drawing(self) -> Markup:
        return tag(
            "svg",
            tag("title", self.title, id=f"{self.identifier}-title"),
            tag("desc", self.description, id=f"{self.identifier}-desc"),
            *self.plot.drawn(),
            viewBox=f"0 0 {WIDTH} {self.plot.height}",
            role="img",
            aria_labelledby=f"{self.identifier}-title {self.identifier}-desc",
        )

    def __repr__(self) -> str:
        return f"<Figure: {self.title}>"

    def _repr_svg_(self) -> str:
        """The drawing with its title, legend and colours, as an SVG file of its own."""
        foot = 30 + self.plot.height
        lines = [
            (key.sample if first else "", text)
            for key in self.plot.legend
            for first, text in _wrapped(f"{key.sign} {key.text}".strip())
        ]
        height = foot + LEGEND_ROW * len(lines) + 8
        size = {"width": WIDTH, "height": height}
        legend = []
        for row, (sample, text) in enumerate(lines):
            top = foot + LEGEND_ROW * row
            legend.append(tag("svg", sample, x=10, y=top, width=30, height=18))
            legend.append(tag("text", text, x=48, y=top + 13))
        drawing = tag("svg", self.drawing, y=30, width=WIDTH, height=self.plot.height)
        return visible(
            tag(
                "svg",
                tag("style", chart_style()),
                tag("rect", class_="paper", **size),
                tag("text", self.title, class_="label", x=16, y=20),
                drawing,
                *legend,
                xmlns="http://www.w3.org/2000/svg",
                viewBox=f"0 0 {WIDTH} {height}",
                **size,
            )
        )

    def _repr_html_(self) -> str:
        """As an image, so that neither its colours nor the notebook's reach into the other."""
        source = base64.b64encode(self._repr_svg_().encode()).decode()
        image = tag("img", alt=self.description, src=f"data:image/svg+xml;base64,{source}")
        return visible(tag("figure", image, tag("figcaption", self.caption)))

    def save(self, path: Path | str) -> Path:
        """Write the drawing as an SVG file, whole or not at all; returns its path."""
        path = Path(path)
        if path.suffix.lower() != ".svg":
            raise UserError(f"{path}: figures are written as SVG; name a file that ends in .svg")
        try:
            write_text(path, self._repr_svg_())
        except OSError as error:
            raise not_writable(path, error) from error
        return path


class Plot:
    """A frame with two linear axes that takes what is drawn on it. Bands and heat lie beneath the grid; signs are
    written last, so that they keep clear of every shape. In a plot that is kept `clear` a sign that finds no free place
    is left out."""

    height = HEIGHT

    def __init__(self, across: Axis, up: Axis, *, clear: bool = False) -> None:
        self.across, self.up, self.clear = across, up, clear
        self.under: list[Markup] = []
        self.parts: list[Markup] = []
        self.legend: list[Key] = []
        self._signs: list[tuple[Point, str, str]] = []
        self._taken: list[Box] = []

    def x(self, value: float) -> float:
        return LEFT + self.across.share(value) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - self.up.share(value) * (HEIGHT - TOP - BOTTOM)

    def drawn(self) -> list[Markup]:
        """All that was drawn, with the axes and the signs."""
        while self._signs:
            at, text, class_ = self._signs.pop(0)
            self.label(self.x(at[0]), self.y(at[1]), text, class_)
        return [*self.under, *self._axes(), *self.parts]

    def _axes(self) -> list[Markup]:
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        middle, upright = (LEFT + right) / 2, (TOP + bottom) / 2
        columns = [(self.x(value), _tick(value)) for value in self.across.ticks()]
        rows = [(self.y(value), _tick(value)) for value in self.up.ticks()]
        grid = [f"M{x:.1f} {TOP}V{bottom}" for x, _ in columns] + [f"M{LEFT} {y:.1f}H{right}" for y, _ in rows]
        turned = f"translate(14 {upright:.0f}) rotate(-90)"
        return [
            tag("path", class_="grid", d="".join(grid)),
            *(tag("text", text, class_="tick", x=x, y=bottom + 18, text_anchor="middle") for x, text in columns),
            *(tag("text", text, class_="tick", x=LEFT - 8, y=y + 4, text_anchor="end") for y, text in rows),
            tag("path", class_="axis", d=f"M{LEFT} {TOP}V{bottom}H{right}"),
            tag("text", self.across.title, class_="title", x=middle, y=HEIGHT - 8, text_anchor="middle"),
            tag("text", self.up.title, class_="title", transform=turned, text_anchor="middle"),
        ]

    def line(self, points: Sequence[Point], class_: str) -> None:
        """A line through data points; a non-finite one breaks it."""
        steps, pen_down = [], False
        for x, y in points:
            if not (math.isfinite(x) and math.isfinite(y)):
                pen_down = False
                continue
            steps.append(f"{'L' if pen_down else 'M'}{self.x(x):.1f} {self.y(y):.1f}")
            pen_down = True
        self.parts.append(tag("path", class_=f"line {class_}", d="".join(steps)))

    def curve(self, name: str, points: Sequence[Point], class_: str, dots: Sequence[Point] = ()) -> None:
        """A line that the legend names and that labels keep clear of; `dots` are marked."""
        self.line(points, class_)
        for x, y in points:
            if math.isfinite(y):
                self._occupy(self.x(x), self.y(y), 6.0)
        self.parts += [tag("circle", class_=f"dot {class_}", cx=self.x(x), cy=self.y(y), r=3.5) for x, y in dots]
        self.legend.append(line_key(class_, name))

    def curves(self, lines: Mapping[str, Sequence[Point]], dots: Mapping[str, Sequence[Point]] | None = None) -> None:
        """Lines by name, each with a stroke of its own."""
        for index, (name, points) in enumerate(lines.items()):
            self.curve(name, points, f"series-{index}", dots[name] if dots else ())

    def strokes(self, segments: Sequence[Segment], class_: str, shift: float = 0.0) -> None:
        """Straight strokes (x0, y0, x1, y1) between data points, moved right by `shift` units."""
        self.parts.append(self._strokes(segments, class_, shift))

    def _strokes(self, segments: Sequence[Segment], class_: str, shift: float = 0.0) -> Markup:
        ends = [(self.x(a) + shift, self.y(b), self.x(c) + shift, self.y(d)) for a, b, c, d in segments]
        return tag("path", class_=class_, d="".join(f"M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}" for a, b, c, d in ends))

    def mark(self, at: Point, shape: str, class_: str, sign: str = "", hint: str = "", name: str = "") -> None:
        """A shape at a data point; `hint` is shown under the pointer, `sign` beside it, `name` in the legend."""
        x, y = self.x(at[0]), self.y(at[1])
        drawn = marker(shape, x, y, class_)
        self.parts.append(tag("g", tag("title", hint), drawn) if hint else drawn)
        self._occupy(x, y, 8.0)
        if sign:
            self.sign(at, sign)
        if name:
            self.legend.append(mark_key(shape, class_, name, sign if sign != name else ""))

    def sign(self, at: Point, text: str, class_: str = "label") -> None:
        """A short text near a data point."""
        self._signs.append((at, text, class_))

    def bands(self, stretches: Iterable[tuple[float, float]], pattern: str) -> None:
        """Stretches of the horizontal axis, hatched; `pattern` is the identifier of the hatching."""
        self.under.append(tag("defs", hatch(pattern)))
        for first, last in stretches:
            left, right = self.x(first), self.x(last)
            self.under += hatched(pattern, left, TOP, max(right - left, 1.0), HEIGHT - TOP - BOTTOM)

    def heat(
        self, xs: Sequence[float], ys: Sequence[float], grid: Sequence[Sequence[float | None]], edges: Sequence[float]
    ) -> None:
        """A map of grid[row][column], None where there is no value, with contour lines at the `edges` between shades
        and their values on them (on every other one where there are many)."""
        half_x, half_y = (xs[1] - xs[0]) / 2, (ys[1] - ys[0]) / 2
        cells: dict[str, list[str]] = {}
        for y, row in zip(ys, grid, strict=True):
            top, height = self.y(y + half_y), self.y(y - half_y) - self.y(y + half_y)
            for x, value in zip(xs, row, strict=True):
                left, width = self.x(x - half_x), self.x(x + half_x) - self.x(x - half_x)
                # A hair wider than the cell, so that no gap of the page shows between two.
                box = f"M{left:.1f} {top:.1f}h{width + 0.3:.1f}v{height + 0.3:.1f}h{-width - 0.3:.1f}z"
                shade = "none" if value is None else sum(value >= edge for edge in edges)
                cells.setdefault(f"heat-{shade}", []).append(box)
        self.under += [tag("path", class_=f"heat {kind}", d="".join(boxes)) for kind, boxes in sorted(cells.items())]
        contours = {level: segments for level in edges if (segments := contour(xs, ys, grid, level))}
        self.under += [self._strokes(segments, "contour") for segments in contours.values()]
        for level in list(contours)[:: 2 if len(contours) > 4 else 1]:
            a, b, c, d = contours[level][len(contours[level]) // 2]
            self.sign(((a + c) / 2, (b + d) / 2), number(level), "level")

    def _occupy(self, x: float, y: float, radius: float) -> None:
        """Keep labels off a marker here (in drawing units)."""
        self._taken.append((x - radius, y - radius, x + radius, y + radius))

    def label(self, x: float, y: float, text: str, class_: str = "label") -> None:
        """Write `text` near a marker at (x, y) in drawing units: in the nearest free box inside the frame."""
        width, height = (LARGE * len(text), LINE) if self.clear else (CHARACTER * len(text), 14.0)
        # A value within a heat map is on a shade; a name may stand in the margin.
        most = WIDTH - RIGHT if class_ == "level" else WIDTH - 2
        boxes: list[Box] = []
        for reach in (1.0, 1.7, 2.6, 3.6, *((5.0, 6.5) if self.clear else ())):
            for dx, dy in ((1, 0), (-1, 0), (0, -1), (0, 1), (0.8, -0.8), (-0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)):
                left = x + dx * reach * 12 - (width if dx < 0 else width / 2 if dx == 0 else 0)
                top = y + dy * reach * 14 - height / 2
                boxes.append((left, top, left + width, top + height))

        def badness(box: Box) -> float:
            inside = box[0] >= LEFT and box[2] <= most and box[1] >= 2 and box[3] <= HEIGHT - BOTTOM
            return sum(_overlap(box, other) for other in self._taken) + (0 if inside else 1000)

        best = min(boxes, key=badness)
        if self.clear:
            if badness(best) > 0:
                return
            near = (min(max(x, best[0]), best[2]), min(max(y, best[1]), best[3]))
            if math.dist((x, y), near) > 18:
                self.parts.append(tag("path", class_="leader", d=f"M{x:.1f} {y:.1f}L{near[0]:.1f} {near[1]:.1f}"))
        self._taken.append((best[0] - 5, best[1], best[2] + 5, best[3]))
        self.parts.append(tag("text", text, class_=class_, x=best[0], y=best[3] - 3))


@dataclass(frozen=True)
class Strip:
    """A row: a name, a value at its end, and beneath them a bar over a share of the length with a line at its
    threshold, or a shape at that share."""

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


class Strips:
    """Strips under one axis, its `ticks` a share of the length and a text each, from left to right. `shaded` is the
    share that is shaded, from the left; a name is cut to `longest` characters."""

    def __init__(
        self, rows: Sequence[Strip], ticks: Sequence[tuple[float, str]], shaded: float = 0.0, longest: int = 46
    ) -> None:
        self.rows, self.ticks, self.shaded, self.longest = rows, ticks, shaded, longest
        self.legend: list[Key] = []
        self.left, self.top, self.above, self.label, foot = (
            (16.0, 34, 16, 12, 8) if rows[0].shape else (12.0, 30, 14, 10, 14)
        )
        self.height = self.top + 46 * len(rows) + foot

    def drawn(self) -> list[Markup]:
        left, top, right = self.left, self.top, WIDTH - 20.0
        scale = right - left
        parts = []
        if self.shaded > 0:
            box = {"x": left, "y": float(top - 8), "width": self.shaded * scale, "height": float(self.height - top + 8)}
            parts.append(tag("rect", class_="certified", **box))
        for index, (share, text) in enumerate(self.ticks):
            at = left + share * scale
            anchor = "start" if index == 0 else "end" if share >= 1 else "middle"
            parts.append(tag("line", class_="grid", x1=at, x2=at, y1=top - 8, y2=self.height))
            parts.append(tag("text", text, class_="tick", x=at, y=top - self.above, text_anchor=anchor))
        for index, row in enumerate(self.rows):
            y = top + index * 46
            parts += [
                tag("text", _cut(row.name, self.longest), class_="label", x=left, y=y + self.label),
                tag("text", row.value, class_="label", x=right, y=y + self.label, text_anchor="end"),
                *row.draw(y, left, scale),
            ]
        return parts


@dataclass(frozen=True)
class Cell:
    """A cell of a matrix: the class of its shade ("unclear" is hatched), what stands on it, and what is shown under the
    pointer."""

    class_: str
    text: str
    hint: str


class Matrix:
    """Rows of shaded cells under the heads of their columns. Names and heads are cut to the room that they have;
    `pattern` is the identifier of the hatching."""

    row_height = 28.0

    def __init__(self, heads: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell]]], pattern: str) -> None:
        self.rows, self.pattern = rows, pattern
        self.legend: list[Key] = []
        self.longest = min(max(len(name) for name, _ in rows), 24)
        self.left = self.longest * LARGE + 8
        self.width = (WIDTH - self.left - 2) / len(heads)
        self.heads = [_broken(head, int(self.width / LARGE), 3) for head in heads]
        self.top = max(map(len, self.heads)) * LINE + 8
        self.height = round(self.top + self.row_height * len(rows) + 2)

    def drawn(self) -> list[Markup]:
        parts = [tag("defs", hatch(self.pattern))]
        for index, lines in enumerate(self.heads):
            middle = self.left + (index + 0.5) * self.width
            for above, line in enumerate(reversed(lines)):
                y = self.top - 8 - above * LINE
                parts.append(tag("text", line, class_="tick", x=middle, y=y, text_anchor="middle"))
        for index, (name, cells) in enumerate(self.rows):
            y = self.top + index * self.row_height
            parts.append(tag("text", _cut(name, self.longest), x=self.left - 8, y=y + 19, text_anchor="end"))
            parts += [self._cell(cell, self.left + column * self.width, y) for column, cell in enumerate(cells)]
        return parts

    def _cell(self, cell: Cell, x: float, y: float) -> Markup:
        box = {"x": x + 1, "y": y + 1, "width": self.width - 2, "height": self.row_height - 2}
        shapes = [tag("rect", class_=f"heat {cell.class_}", **box)]
        if cell.class_ == "unclear":
            shapes.append(tag("rect", fill=f"url(#{self.pattern})", **box))
        middle = x + self.width / 2
        text = tag("text", cell.text, class_=f"on {cell.class_}", x=middle, y=y + 19, text_anchor="middle")
        return tag("g", tag("title", cell.hint), *shapes, text)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _broken(text: str, most: int, lines: int) -> list[str]:
    """Text in lines of at most so many characters, cut where there are too many."""
    broken: list[str] = []
    for word in text.split():
        if broken and len(broken[-1]) + 1 + len(word) <= most:
            broken[-1] += f" {word}"
        else:
            broken.append(_cut(word, most))
    return broken if len(broken) <= lines else [*broken[: lines - 1], _cut(f"{broken[lines - 1]}…", most)]


def _wrapped(text: str) -> list[tuple[bool, str]]:
    """The lines that a legend's entry takes, each with whether it is the first."""
    return [(index == 0, line) for index, line in enumerate(textwrap.wrap(text, LONGEST_LEGEND) or [""])]


def _tick(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.4f}".rstrip("0").rstrip(".").replace("-", "−")
    return number(value)


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
