"""What is known of a metric without computing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from letgo.core.catalog import Record

CHANCE = 0.25
"""What guessing scores in a choice of four."""


@dataclass(frozen=True)
class Headline:
    """A metric by which a benchmark judges forgetting, which lowers it.

    Attributes:
        metric: such as "forget_probability": the mean of the score "probability" over the set "forget".
        floor: what a model that knows nothing scores.
    """

    metric: str
    floor: float = 0.0


Better = Literal["lower", "higher"]
FORGOTTEN: Mapping[str, Better] = {"forget": "lower", "trained": "lower"}
KNOWN: Mapping[str, Better] = {**FORGOTTEN, "retain": "higher"}


@dataclass(frozen=True, kw_only=True)
class MetricRecord(Record):
    """All that is shown of a metric, whichever set it is taken over: "accuracy" of "forget_accuracy".

    Attributes:
        meaning: what a value says, in a line; "" of what never stands in a table.
        better: by set, whether lower or higher is better there.
        headline: the sets for which the main table shows it.
        amount: whether it falls with what is known of the forget set; else it says how like a retrained model one is.
        floor: what a model that knows nothing scores.
        ceiling: the largest value; None where there is none.
    """

    meaning: str = ""
    better: Mapping[str, Better] = field(default_factory=dict)
    headline: tuple[str, ...] = ()
    amount: bool = True
    floor: float = 0.0
    ceiling: float | None = 1.0
