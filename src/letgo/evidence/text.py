"""Markdown by small functions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from letgo.evidence.statistics import Estimate
from letgo.report.numbers import MISSING, number


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def paragraph(text: str) -> str:
    """A text's paragraphs, each wrapped; blank lines part them."""
    blocks = [" ".join(block.split()) for block in text.split("\n\n")]
    return "\n\n".join(textwrap.fill(b, 120, break_long_words=False, break_on_hyphens=False) for b in blocks if b)


def mean(found: Estimate | None) -> str:
    """0.61 (0.52 to 0.70); the mean alone where there is no interval."""
    if found is None:
        return MISSING
    return f"{number(found.mean)} ({number(found.low)} to {number(found.high)})" if found.known else number(found.mean)


def rate(value: float | None) -> str:
    """A learning rate with all its digits, for it was chosen and not measured: 1.25e-4, 0.0028."""
    if value is None:
        return MISSING
    if value >= 1e-3:
        return f"{value:g}"
    mantissa, _, exponent = f"{value:.5e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def shares(found: Estimate | None) -> str:
    """61 ± 9, in per cent."""
    if found is None:
        return MISSING
    value = f"{100 * found.mean:.1f}".replace("-", "−")
    return f"{value} ± {100 * (found.high - found.mean):.1f}" if found.known else value


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
