"""Markdown and numbers by small functions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from letgo import number
from research.d2u.statistics import Estimate

MISSING = "–"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def paragraphs(text: str) -> str:
    """A text with each paragraph and each item of a list wrapped; headings, tables and drawings stay as they are."""
    return "\n\n".join(_wrapped(block) for block in text.split("\n\n") if block.strip())


def mean(estimate: Estimate | None) -> str:
    """0.61 (0.52 to 0.70); the mean alone if there is no interval."""
    if estimate is None:
        return MISSING
    text = number(estimate.mean)
    return f"{text} ({number(estimate.low)} to {number(estimate.high)})" if estimate.has_interval else text


def rate(value: float) -> str:
    """A learning rate with all its digits, since it was chosen and not measured: 1.25e-4, 0.0028."""
    if value >= 1e-3:
        return f"{value:g}"
    mantissa, _, exponent = f"{value:.5e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def shares(estimate: Estimate | None) -> str:
    """61 ± 9, in per cent."""
    if estimate is None:
        return MISSING
    text = f"{100 * estimate.mean:.1f}".replace("-", "−")
    return f"{text} ± {100 * (estimate.high - estimate.mean):.1f}" if estimate.has_interval else text


def words(key: str) -> str:
    """A metric's name in text: "forget_accuracy" is "forget accuracy"."""
    return key.replace("_", " ")


def _wrapped(block: str) -> str:
    lines = block.strip().splitlines()
    if lines[0].startswith(("#", "|", "![")):
        return block.strip()
    items: list[str] = []
    for line in lines:
        if line.startswith("- ") or line.partition(". ")[0].isdigit() or not items:
            items.append(line.strip())
        else:
            items[-1] += f" {line.strip()}"
    return "\n".join(_filled(item) for item in items)


def _filled(item: str) -> str:
    marker = item.partition(" ")[0] + " " if item.startswith("- ") or item.partition(". ")[0].isdigit() else ""
    return textwrap.fill(
        " ".join(item.split()),
        120,
        subsequent_indent=" " * len(marker),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
