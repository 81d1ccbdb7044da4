"""Means and paired differences over seeds, with Student's intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t as student

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds and its 95 % interval, m ± t s/√n with n − 1 degrees of freedom; one seed has no interval."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def has_interval(self) -> bool:
        return math.isfinite(self.low)


def estimate(values: Sequence[float]) -> Estimate | None:
    """The mean of some values; None if there are none."""
    n = len(values)
    if n == 0:
        return None
    mean = statistics.fmean(values)
    if n == 1:
        return Estimate(mean, -math.inf, math.inf, 1)
    half = float(student.ppf(0.5 + LEVEL / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate | None:
    """The mean of first − second over the seeds that both have."""
    shared = sorted(first.keys() & second.keys())
    return estimate([first[seed] - second[seed] for seed in shared])
