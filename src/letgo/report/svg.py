"""Inline SVG by small functions: elements, axes, and labels that keep out of each other's way.

Colours come from the page's style sheet by class, never from attributes, so that one drawing serves light, dark and
print. Everything that is written is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

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


@dataclass
class Plot:
    """A frame with two linear axes, in a view box of `WIDTH` × `HEIGHT`."""

    x_domain: tuple[float, float]
    y_domain: tuple[float, float]
    x_title: str
    y_title: str
    whole: bool = False
    """Across stand whole numbers (steps, bits): none is written between them."""
    parts: list[Markup] = field(default_factory=list)
    _taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def x(self, value: float) -> float:
        return LEFT + _share(value, self.x_domain) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - _share(value, self.y_domain) * (HEIGHT - TOP - BOTTOM)

    def add(self, *elements: Markup) -> None:
        self.parts.extend(elements)

    def axes(self) -> None:
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        across = [value for value in ticks(*self.x_domain) if not self.whole or value == round(value)]
        grid = [f"M{self.x(value):.1f} {TOP}V{bottom}" for value in across]
        grid += [f"M{LEFT} {self.y(value):.1f}H{right}" for value in ticks(*self.y_domain)]
        self.add(tag("path", class_="grid", d="".join(grid)))
        for value in across:
            at = self.x(value)
            self.add(tag("text", escape(_tick(value)), class_="tick", x=at, y=bottom + 18, text_anchor="middle"))
        for value in ticks(*self.y_domain):
            at = self.y(value)
            self.add(tag("text", escape(_tick(value)), class_="tick", x=LEFT - 8, y=at + 4, text_anchor="end"))
        middle, upright = (LEFT + right) / 2, (TOP + bottom) / 2
        self.add(
            tag("path", class_="axis", d=f"M{LEFT} {TOP}V{bottom}H{right}"),
            tag("text", escape(self.x_title), class_="title", x=middle, y=HEIGHT - 8, text_anchor="middle"),
            tag(
                "text",
                escape(self.y_title),
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

    def render(self, identifier: str, title: str, description: str, *definitions: Markup) -> Markup:
        """The whole drawing, named for those who do not see it."""
        head = tag("title", escape(title), id=f"{identifier}-title")
        told = tag("desc", escape(description), id=f"{identifier}-desc")
        return tag(
            "svg",
            head,
            told,
            *([tag("defs", *definitions)] if definitions else []),
            *self.parts,
            viewBox=f"0 0 {WIDTH} {HEIGHT}",
            role="img",
            aria_labelledby=f"{identifier}-title {identifier}-desc",
        )


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


def _share(value: float, bounds: tuple[float, float]) -> float:
    low, high = bounds
    return min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.5


def _tick(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.4f}".rstrip("0").rstrip(".").replace("-", "−")
    return number(value)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
