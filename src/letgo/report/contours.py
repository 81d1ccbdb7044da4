"""Contour lines of a grid of values, by marching squares."""

from __future__ import annotations

import math
from collections.abc import Sequence

Segment = tuple[float, float, float, float]


def levels(low: float, high: float, classes: int) -> list[float]:
    """Borders between classes: evenly spaced, or evenly in the logarithm where the values span more than a factor of
    20. Classes − 1 of them; none where all values are the same."""
    if not high > low:
        return []
    if low > 0 and high / low > 20:
        ratio = math.log(high / low)
        return [low * math.exp(ratio * k / classes) for k in range(1, classes)]
    return [low + (high - low) * k / classes for k in range(1, classes)]


def contour(
    xs: Sequence[float], ys: Sequence[float], grid: Sequence[Sequence[float | None]], level: float
) -> list[Segment]:
    """Segments (x0, y0, x1, y1) on which the values grid[row][column], linear along the grid's edges, are at `level`.

    The columns' and rows' coordinates `xs` and `ys` rise. A square with a missing corner has no line; in a saddle the
    mean of its corners tells which ends belong together.
    """
    segments: list[Segment] = []
    for row in range(len(ys) - 1):
        for column in range(len(xs) - 1):
            a, b, c, d = grid[row][column], grid[row][column + 1], grid[row + 1][column + 1], grid[row + 1][column]
            if a is None or b is None or c is None or d is None:
                continue
            left, right, bottom, top = xs[column], xs[column + 1], ys[row], ys[row + 1]
            corners = ((left, bottom, a), (right, bottom, b), (right, top, c), (left, top, d))
            # Bottom, right, top, left: where the level is crossed.
            crossed = [_cross(corners[k], corners[(k + 1) % 4], level) for k in range(4)]
            ends = [point for point in crossed if point is not None]
            if len(ends) == 2:
                segments.append((*ends[0], *ends[1]))
            elif len(ends) == 4:
                inside = (a + b + c + d) / 4 >= level
                first = (0, 1) if inside == (a >= level) else (3, 0)
                second = (2, 3) if first == (0, 1) else (1, 2)
                segments += [(*ends[i], *ends[j]) for i, j in (second, first)]
    return segments


def _cross(
    first: tuple[float, float, float], second: tuple[float, float, float], level: float
) -> tuple[float, float] | None:
    (x0, y0, v0), (x1, y1, v1) = first, second
    if (v0 >= level) == (v1 >= level):
        return None
    share = (level - v0) / (v1 - v0)
    return (x0 + share * (x1 - x0), y0 + share * (y1 - y0))
