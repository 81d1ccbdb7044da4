"""Drawings for a page of text: files of their own, with the report's strokes and colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup, escape

from letgo.core.files import write_text
from letgo.evidence.statistics import Estimate
from letgo.report.chart import tag, ticks
from letgo.report.numbers import number
from letgo.report.rendering import asset

WIDTH, LEFT, RIGHT, TOP, ROW, BOTTOM = 600, 150, 20, 14, 24, 46


def dots(title: str, across: str, rows: Sequence[tuple[str, Estimate, bool]]) -> Markup:
    """Means with their intervals, one below another, on an axis from 0 to 1.

    Args:
        title: for those who don't see it.
        across: what stands along the axis.
        rows: name, estimate, and whether it takes part in comparisons; those that don't are drawn hollow.
    """
    height = TOP + ROW * len(rows) + BOTTOM
    bottom = height - BOTTOM
    parts = [tag("path", class_="grid", d="".join(f"M{_x(v):.1f} {TOP}V{bottom}" for v in ticks(0.0, 1.0)))]
    for value in ticks(0.0, 1.0):
        text = f"{value:.1f}"
        parts.append(tag("text", text, class_="tick", x=_x(value), y=bottom + 18, text_anchor="middle"))
    for place, (name, found, counted) in enumerate(rows):
        y = TOP + ROW * (place + 0.5)
        parts.append(tag("text", escape(name), x=LEFT - 10, y=y + 4, text_anchor="end"))
        if found.known:
            parts.append(tag("path", class_="reach after", d=f"M{_x(found.low):.1f} {y:.1f}H{_x(found.high):.1f}"))
        parts.append(tag("circle", class_=f"mark after{'' if counted else ' hollow'}", cx=_x(found.mean), cy=y, r=5))
    parts.append(tag("path", class_="axis", d=f"M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(tag("text", escape(across), class_="title", x=middle, y=height - 8, text_anchor="middle"))
    told = "; ".join(f"{name}: {number(found.mean)}" for name, found, _ in rows)
    return tag(
        "svg",
        tag("title", escape(title)),
        tag("desc", escape(told)),
        *parts,
        viewBox=f"0 0 {WIDTH} {height}",
        role="img",
    )


def write_drawing(path: Path, drawing: Markup) -> None:
    """A drawing as a file of its own: with its name space, its size and the report's styles for drawings."""
    lines = asset("report.css").splitlines()
    last = next(index for index, line in enumerate(lines) if line.startswith("svg "))
    roots = lines[: next(index for index, line in enumerate(lines[:last]) if line.startswith(("*", "body", "html")))]
    style = "\n".join([*roots, *(line for line in lines if line.startswith("svg "))])
    box = str(drawing).split('viewBox="0 0 ', 1)[1].split('"', 1)[0].split()
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{box[0]}" height="{box[1]}" '
    text = str(drawing).replace("<svg ", head, 1)
    start, rest = text.split(">", 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, f"{start}><style>\n{style}\n</style>{rest}\n")


def _x(value: float) -> float:
    share = min(max(value, 0.0), 1.0) if math.isfinite(value) else 0.0
    return LEFT + share * (WIDTH - LEFT - RIGHT)
