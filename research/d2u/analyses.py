"""Where the optimizers' solutions lie: linear mode connectivity and certificates, from the files of `letgo analyze`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from letgo import number, read_analyses
from research.d2u.markdown import MISSING, paragraphs, table

SAME_BASIN = 0.1
"""A barrier of the retain loss up to this, in nats a token, counts as none."""

_GRADES = {
    "adamw": "AdamW",
    "sophia": "Sophia",
    "muon": "Muon",
    "sign_adam": "SignAdam",
    "sign_sgd": "SignSGD",
    "compressed_bits_8": "8-bit",
    "compressed_bits_4": "4-bit",
    "sam": "SAM",
    "randomized_smoothing": "RS",
    "fozo": "FOZO",
}


def read(results: Path) -> tuple[list[Any], list[Any]]:
    """The connectivities and the certificates beside the result files."""
    entries: list[Any] = read_analyses(results, ("connectivity", "certificate"))
    kinds = ("connectivity", "certificate")
    connectivities, certificates = ([entry for entry in entries if entry.kind == kind] for kind in kinds)
    return connectivities, certificates


def grade_of(directory: str) -> str:
    """The grade that the name of a sweep's run directory tells; the name itself where it is no such directory."""
    name = Path(directory).name
    fitting = [start for start in _GRADES if name.startswith(f"optimizer_{start}_")]
    return _GRADES[max(fitting, key=len)] if fitting else name


def section(connectivities: Sequence[Any], certificates: Sequence[Any]) -> str:
    parts = [part for entry in connectivities for part in _connectivity(entry)]
    if certificates:
        parts += _certificates(certificates)
    return "\n\n".join(parts) or "Not measured."


def basin(connectivities: Sequence[Any], first: str, second: str) -> tuple[str, str]:
    """Whether no barrier of the retain loss lies between two grades' solutions; and the figure."""
    for entry in connectivities:
        for path in entry.paths:
            if {grade_of(path.first), grade_of(path.second)} == {first, second}:
                rise = path.barriers["retain_loss"].rise
                between = f"between {first} and {second} the retain loss rises by {number(rise)} nats a token"
                return "holds" if rise <= SAME_BASIN else "does not hold", f"NPO, seed 0: {between}"
    return "not testable here", ""


def _connectivity(entry: Any) -> list[str]:
    rows = []
    for path in entry.paths:
        retain, forget = path.barriers["retain_loss"], path.barriers["forget_loss"]
        values = (path.distance, retain.rise, forget.rise, forget.fall)
        kind = "one basin" if retain.rise <= SAME_BASIN else "a barrier"
        rows.append([f"{grade_of(path.first)} – {grade_of(path.second)}", *map(number, values), kind])
    text = (
        "Linear mode connectivity: losses on the straight line between two models, in nats a token, by `letgo analyze "
        "connectivity` on seed 0 of each grade. A barrier is how far a loss rises above the straight line between its "
        f"values at the two ends. Two models whose retain loss rises by at most {SAME_BASIN:g} are in one basin. Where "
        "the forget loss falls below that line, knowledge comes back on the way."
    )
    header = ["models", "distance", "retain barrier", "forget rise", "forget fall", ""]
    return [paragraphs(text), table(header, rows)]


def _certificates(entries: Sequence[Any]) -> list[str]:
    rows = []
    for entry in entries:
        moved = {what: [d.value for d in entry.displacements if d.what == what and d.value is not None]
                 for what in ("unlearning", "attack")}  # fmt: skip
        for smoothed in entry.smoothed:
            together, kept = smoothed.together, smoothed.utility.get("retain_accuracy")
            rows.append(
                [
                    grade_of(entry.subject),
                    number(smoothed.sigma),
                    f"{together.revealed} of {together.draws}",
                    number(together.p_lower),
                    number(together.radius),
                    number(kept.value) if kept else MISSING,
                    "; ".join(smoothed.collapsed) or "no",
                    number(moved["unlearning"][0]) if moved["unlearning"] else MISSING,
                    f"{number(min(moved['attack']))} to {number(max(moved['attack']))}" if moved["attack"] else MISSING,
                ]
            )
    first = entries[0]
    text = (
        "Certificates by randomized smoothing: the model is smoothed by noise of size σ on its weights. Within the "
        f"radius no change of the weights lets the smoothed model reveal the forget set ({first.event}) with a chance "
        f"of one half or more, with confidence {1 - first.alpha:g}. All models have the same σ, so that their radii "
        "can be compared. It was chosen after a first set had been seen and put aside, in which each run had its own "
        "default σ (as far as unlearning moved it, over √d)."
    )
    header = ["model", "σ", "draws that reveal", "lower bound", "radius", "retain accuracy under noise", "broken"]
    header += ["unlearning moved", "attacks move"]
    return [paragraphs(text), table(header, rows)]
