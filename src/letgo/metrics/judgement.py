"""How much was forgotten, and how much of it an attack leaves: one scale between a model that knows and one that never
did. Pure functions of recorded scores."""

from __future__ import annotations

from collections.abc import Sequence

from letgo.metrics.records import Headline
from letgo.runs.results import Metrics

TARGET = 0.75
"""Forgotten is: by the worse end of its interval, three quarters of the way to the level of a model that never knew."""


def forgotten_share(headlines: Sequence[Headline], original: Metrics, now: Metrics) -> float | None:
    """F = (s(O) − s(U)) / (s(O) − f), the smallest over the headlines that both models have and the original knew; f is
    the headline's floor. None without any. A plain figure without an interval, for looks during training."""
    shares = [
        (original[h.metric].value - now[h.metric].value) / (original[h.metric].value - h.floor)
        for h in headlines
        if h.metric in original and h.metric in now and original[h.metric].value > h.floor
    ]
    return min(shares) if shares else None
