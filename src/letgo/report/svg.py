"""The marks that drawings are made of: one element, the shapes of points, hatching, and the entries of a legend."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup, escape


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


@dataclass(frozen=True)
class Key:
    """One entry of a drawing's legend: a sample of the mark, what it is, and its short sign in the drawing."""

    sample: Markup
    text: str
    sign: str = ""


def mark_key(shape: str, class_: str, text: str, sign: str = "") -> Key:
    return Key(_sample(marker(shape, 10, 10, class_)), text, sign)


def line_key(class_: str, text: str) -> Key:
    return Key(_sample(tag("path", class_=f"line {class_}", d="M1 10H29"), width=30), text)


def rule_key(text: str, sign: str) -> Key:
    return Key(_sample(tag("line", class_="here", x1=10, x2=10, y1=1, y2=19)), text, sign)


def shade_key(class_: str, text: str, sign: str = "") -> Key:
    return Key(_sample(tag("rect", class_=f"heat {class_} swatch", x=1, y=3, width=18, height=14)), text, sign)


def band_key(pattern: str, text: str, sign: str = "") -> Key:
    return Key(_sample(tag("defs", hatch(pattern)), *hatched(pattern, 1, 3, 28, 14), width=30), text, sign)


def hatch(identifier: str) -> Markup:
    stroke = tag("line", class_="hatch", x1=0, y1=0, x2=0, y2=7)
    frame = {"patternUnits": "userSpaceOnUse", "patternTransform": "rotate(45)"}
    return tag("pattern", stroke, id=identifier, width=7, height=7, **frame)


def hatched(pattern: str, x: float, y: float, width: float, height: float) -> list[Markup]:
    box = {"x": x, "y": y, "width": width, "height": height}
    return [tag("rect", class_="phase", **box), tag("rect", fill=f"url(#{pattern})", **box)]


def _sample(*shapes: Markup, width: int = 20) -> Markup:
    return tag("svg", *shapes, class_="key", viewBox=f"0 0 {width} 20", aria_hidden="true")


def marker(kind: str, x: float, y: float, class_: str) -> Markup:
    """A shape for each kind of point, so that no two kinds differ by colour alone."""
    shapes = {
        "before": tag("circle", class_=f"mark hollow {class_}", cx=x, cy=y, r=6),
        "after": tag("circle", class_=f"mark {class_}", cx=x, cy=y, r=6),
        "reference": tag("path", class_=f"mark {class_}", d=f"M{x:.1f} {y - 8:.1f}l8 8l-8 8l-8 -8z"),
        "survived": tag("rect", class_=f"mark {class_}", x=x - 5.5, y=y - 5.5, width=11, height=11),
    }
    cross = tag("path", class_=f"mark open {class_}", d=f"M{x - 6:.1f} {y - 6:.1f}l12 12m0 -12l-12 12")
    return shapes.get(kind, cross)
