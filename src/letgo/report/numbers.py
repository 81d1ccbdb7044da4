"""How numbers are written, the same everywhere: page, terminal and card."""

from __future__ import annotations

import math

from letgo.runs.results import Metric

MISSING = "–"
"""Stands where nothing was measured."""


def number(value: float | int | None) -> str:
    """Two or three significant digits: 1.00, 0.017, 1.7e-4, 14.2, 1,234, 3.1e9."""
    if value is None or not math.isfinite(value):
        return MISSING if value is None else str(value).replace("-", "−")
    size = abs(value)
    if size == 0:
        text = "0.00"
    elif size < 9.5e-4 or size >= 999_999.5:
        mantissa, _, exponent = f"{size:.1e}".partition("e")
        text = f"{mantissa}e{int(exponent)}"
    elif size < 0.0995:
        text = f"{size:.3f}" if size >= 0.00995 else f"{size:.4f}"
    elif size < 9.995:
        text = f"{size:.2f}"
    elif size < 999.95:
        text = f"{size:.1f}"
    else:
        text = f"{size:,.0f}"
    return f"−{text}" if value < 0 else text


def words(key: str) -> str:
    """A metric's or setting's name as words: "forget accuracy"."""
    return key.replace("_", " ")


def measured(metric: Metric, before_n: str = ", n") -> str:
    """A value with its interval and number of samples: "0.50 (0.41–0.59, n 80)"."""
    return f"{number(metric.value)} ({interval(metric)}{before_n} {metric.n:,})"


def interval(metric: Metric) -> str:
    """The 95 % interval: "0.36–0.64"; "−0.10 to 0.20" where a dash would read as a minus."""
    low, high = metric.ci95
    joint = " to " if low < 0 or high < 0 else "–"
    return f"{number(low)}{joint}{number(high)}"


def percent(share: float) -> str:
    """A share as a whole per cent; the ends are kept for what is exactly at the ends."""
    if 0.0 < share < 0.01:
        return "<1 %"
    if 0.99 < share < 1.0:
        return ">99 %"
    return f"{share * 100:,.0f} %".replace("-", "−")


def kept_text(kept: float | None) -> str:
    """The share of the forgetting that an attack left, in words where nobody can tell."""
    return "can't tell" if kept is None else percent(kept)


def duration(seconds: float) -> str:
    """4.2 s, 41 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"
