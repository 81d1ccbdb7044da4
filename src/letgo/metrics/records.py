"""What is known of a metric without computing it."""

from __future__ import annotations

from dataclasses import dataclass

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
