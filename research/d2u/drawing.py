"""Drawings for the page: means with their intervals, each drawing an SVG file of its own for light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import escape

from letgo import number
from research.d2u.statistics import Estimate

WIDTH, LEFT, RIGHT, TOP, ROW, BOTTOM = 600, 150, 20, 14, 24, 46

_STYLE = """
svg { --ink: #1b1f24; --muted: #565e68; --line: #d9dcd8; --mark: #1a55a8; --page: #ffffff; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e7e9ec; --muted: #a4adb8; --line: #363c45; --mark: #8fb9f5; --page: #1b1f25; }
}
text { font: 13px system-ui, sans-serif; fill: var(--ink); }
.tick { fill: var(--muted); }
path { fill: none; stroke: var(--line); }
.axis { stroke: var(--muted); }
.interval { stroke: var(--mark); stroke-width: 2; }
.mark { fill: var(--mark); stroke: var(--mark); stroke-width: 2; }
.hollow { fill: var(--page); }
"""


def dots(title: str, across: str, rows: Sequence[tuple[str, Estimate, bool]]) -> str:
    """Means with their intervals, one below another, on an axis from 0 to 1.

    Args:
        title: for readers who do not see the drawing.
        across: the axis' title.
        rows: name, estimate, and whether it takes part in comparisons; those that do not are drawn hollow.
    """
    height = TOP + ROW * len(rows) + BOTTOM
    bottom = height - BOTTOM
    ticks = [index / 5 for index in range(6)]
    parts = [f'<path d="{"".join(f"M{_x(value):.1f} {TOP}V{bottom}" for value in ticks)}"/>']
    parts += [_text(f"{value:.1f}", _x(value), bottom + 18, "middle", "tick") for value in ticks]
    for index, (name, estimate, matched) in enumerate(rows):
        y = TOP + ROW * (index + 0.5)
        parts.append(_text(name, LEFT - 10, y + 4, "end"))
        if estimate.has_interval:
            ends = f"M{_x(estimate.low):.1f} {y:.1f}H{_x(estimate.high):.1f}"
            parts.append(f'<path class="interval" d="{ends}"/>')
        style = "mark" if matched else "mark hollow"
        parts.append(f'<circle class="{style}" cx="{_x(estimate.mean):.2f}" cy="{y:.1f}" r="5"/>')
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}"/>')
    parts.append(_text(across, (LEFT + WIDTH - RIGHT) / 2, height - 8, "middle"))
    described = "; ".join(f"{name}: {number(estimate.mean)}" for name, estimate, _ in rows)
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><style>{_STYLE}</style>'
    return "\n".join(
        [head, f"<title>{escape(title)}</title>", f"<desc>{escape(described)}</desc>", *parts, "</svg>", ""]
    )


def _text(text: str, x: float, y: float, anchor: str, style: str = "") -> str:
    named = f' class="{style}"' if style else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _x(value: float) -> float:
    return LEFT + min(max(value, 0.0), 1.0) * (WIDTH - LEFT - RIGHT)
