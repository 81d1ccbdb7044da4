"""The share between a model that knows and one that never did, written out slowly."""

from __future__ import annotations

import math


def share(original, unlearned, never, score):
    """The value and its plain standard error over groups: group by group, no arrays."""
    groups = sorted({sample.group for sample in original})
    lost, gap = [], []
    for group in groups:
        knows, now, other = (
            sum(s.scores[score] for s in model if s.group == group) for model in (original, unlearned, never)
        )
        lost.append(knows - now)
        gap.append(knows - other)
    value = sum(lost) / sum(gap)
    count = len(groups)
    squares = sum((top - value * bottom) ** 2 for top, bottom in zip(lost, gap, strict=True))
    return value, math.sqrt(count / (count - 1) * squares) / sum(gap)
