"""Where the optimizers' solutions lie: linear mode connectivity and certificates, from `letgo analyze`'s files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from letgo.analysis.records import Certificate, Connectivity, read_analyses
from letgo.evidence.records import grade_of_run
from letgo.evidence.text import paragraph, table
from letgo.report.numbers import MISSING, number

SAME_BASIN = 0.1
"""A barrier of the retain loss up to this, in nats a token, is called none."""


@dataclass(frozen=True)
class Places:
    paths: Sequence[Connectivity]
    certificates: Sequence[Certificate]


def read(results: Path) -> Places:
    """The analyses beside the result files."""
    found: list[Any] = read_analyses(results, ("connectivity", "certificate"))
    return Places(
        [one for one in found if isinstance(one, Connectivity)], [one for one in found if isinstance(one, Certificate)]
    )


def section(found: Places) -> list[str]:
    """The page's part on them; said so where there are none."""
    parts = ["## Where the solutions lie"]
    if not found.paths and not found.certificates:
        return [*parts, "Not measured."]
    for entry in found.paths:
        parts += _connectivity(entry)
    if found.certificates:
        parts += _certificates(found.certificates)
    return parts


def _connectivity(entry: Connectivity) -> list[str]:
    rows = []
    for path in entry.paths:
        retain, forget = (path.barriers[key].rise for key in ("retain_loss", "forget_loss"))
        falls = path.barriers["forget_loss"].fall
        rows.append(
            [
                f"{grade_of_run(path.first)} – {grade_of_run(path.second)}",
                number(path.distance),
                number(retain),
                number(forget),
                number(falls),
                "one basin" if retain <= SAME_BASIN else "a barrier",
            ]
        )
    text = (
        f"Linear mode connectivity: losses on the straight line between two models, in nats a token. A barrier is what "
        f"a loss rises above the line between its ends; up to {SAME_BASIN:g} of the retain loss is called one basin. "
        f"Where the forget loss falls below that line, knowledge comes back on the way. "
        f"`letgo analyze connectivity` on seed 0 of each grade."
    )
    header = ["models", "distance", "retain barrier", "forget rise", "forget fall", ""]
    return [paragraph(text), table(header, rows)]


def _certificates(entries: Sequence[Certificate]) -> list[str]:
    rows = []
    for entry in entries:
        unlearning = [d.value for d in entry.displacements if d.what == "unlearning" and d.value is not None]
        attacks = [d.value for d in entry.displacements if d.what == "attack" and d.value is not None]
        for smoothed in entry.smoothed:
            together = smoothed.together
            rows.append(
                [
                    grade_of_run(entry.subject),
                    number(smoothed.sigma),
                    f"{together.revealed} of {together.draws}",
                    number(together.p_lower),
                    number(together.radius),
                    number(kept.value) if (kept := smoothed.utility.get("retain_accuracy")) else MISSING,
                    "; ".join(smoothed.collapsed) or "no",
                    number(unlearning[0]) if unlearning else MISSING,
                    f"{number(min(attacks))} to {number(max(attacks))}" if attacks else MISSING,
                ]
            )
    first = entries[0]
    text = (
        f"Certificates by randomized smoothing over the weights, with confidence {1 - first.alpha:g}: within the "
        f"radius no change of the weights makes the smoothed model's chance of revealing the forget set "
        f"({first.event}) one half. One σ serves all, so that their radii can be compared; it was chosen after a first "
        "set, at each run's own default σ (as far as unlearning moved it, over √d), had been seen and put aside."
    )
    header = ["model", "σ", "draws that reveal", "lower bound", "radius", "retain accuracy under noise", "broken"]
    header += ["unlearning moved", "attacks move"]
    return [paragraph(text), table(header, rows)]


def basin(found: Places, first: str, second: str) -> tuple[str, str]:
    """Whether two grades' solutions lie in one basin, no barrier of the retain loss between them; and the figure."""
    for entry in found.paths:
        for path in entry.paths:
            if {grade_of_run(path.first), grade_of_run(path.second)} == {first, second}:
                rise = path.barriers["retain_loss"].rise
                figure = (
                    f"NPO, seed 0: between {first} and {second} the retain loss rises by {number(rise)} nats a token"
                )
                return "holds" if rise <= SAME_BASIN else "does not hold", figure
    return "not testable here", ""
