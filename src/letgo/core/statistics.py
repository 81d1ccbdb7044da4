"""Intervals and comparisons from few groups and few seeds: the one place where letgo does statistics.

A group is what stands or falls together (a person, a country, a document); its questions are not independent, its
wordings even less. All intervals are over groups, by Student's t, which holds its level from a handful of groups on: a
percentile bootstrap over 5 groups covers 85 % where it says 95 %. `perf/statistics.py` measures both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
LEAST_SEEDS = 3
"""With fewer paired seeds a difference has a spread but no p-value."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, from `groups` groups. Without an interval (one group) the ends are infinite."""

    value: float
    low: float
    high: float
    groups: int

    @property
    def interval(self) -> Interval:
        return self.low, self.high

    def clipped(self, least: float, most: float) -> Estimate:
        """The same with value and ends moved into a range."""
        value, low, high = (min(max(end, least), most) for end in (self.value, self.low, self.high))
        return Estimate(value, low, high, self.groups)


def ratio(
    numerators: Sequence[float] | np.ndarray,
    denominators: Sequence[float] | np.ndarray,
    groups: Sequence[str],
    *,
    level: float = LEVEL,
    sides: int = 2,
) -> Estimate:
    """Σ numerators / Σ denominators, with its interval over groups.

    R = Σ_g x_g / Σ_g y_g of the groups' sums; its error is that of the linearised ratio, s² = n/(n−1) · Σ_g (x_g −
    R·y_g)² / (Σ_g y_g)², and the interval R ± t_{n−1}·s (Cochran, Sampling Techniques, 3rd ed., section 6.3). With
    denominators of one it is the mean over samples, whole groups being drawn.

    Args:
        numerators, denominators, groups: one each a sample.
        level: of the interval.
        sides: 1 for one-sided bounds: each end then holds at the level by itself.
    """
    tops, bottoms = _sums(numerators, denominators, groups)
    count, bottom = len(tops), float(bottoms.sum())
    if bottom == 0.0:
        return Estimate(math.nan, -math.inf, math.inf, count)
    value = float(tops.sum()) / bottom
    if count < 2:
        return Estimate(value, -math.inf, math.inf, count)
    errors = tops - value * bottoms
    half = student(level, sides, count - 1) * math.sqrt(count / (count - 1) * float(errors @ errors)) / abs(bottom)
    return Estimate(value, value - half, value + half, count)


def mean(values: Sequence[float] | np.ndarray, groups: Sequence[str], *, level: float = LEVEL) -> Estimate:
    """The mean over samples, with its interval over groups."""
    return ratio(values, np.ones(len(values)), groups, level=level)


def student(level: float, sides: int, freedom: int) -> float:
    """Student's t quantile that leaves 1 − level outside, on one side or on both."""
    from scipy.stats import t

    return float(t.ppf(1.0 - (1.0 - level) / sides, freedom))


def proportion_bound(hits: int, trials: int, *, level: float = LEVEL) -> float:
    """The one-sided upper bound of a proportion (Clopper and Pearson, Biometrika 26, 1934): the largest share under
    which so few hits would still be seen with probability 1 − level. Of no trials it is 1."""
    from scipy.stats import beta

    return 1.0 if hits >= trials else float(beta.ppf(level, hits + 1, trials - hits))


def wilson(share: float, trials: int) -> Interval:
    """Wilson's 95 % interval of a proportion: of one that is 0 or 1, where the samples show no spread."""
    z = 1.959963984540054
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Difference:
    """How much the first of two settings is above the second, over paired seeds.

    Attributes:
        value: the mean difference; `low` and `high` its 95 % interval, infinite with one seed.
        spread: the standard deviation over seeds; NaN with one.
        p: two-sided, from Student's paired test; None with fewer than `LEAST_SEEDS` seeds.
    """

    value: float
    low: float
    high: float
    spread: float
    seeds: int
    p: float | None


def paired(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare two settings, seed by seed: `first[i]` and `second[i]` had the same seed."""
    from scipy.stats import t

    gaps = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    count, value = len(gaps), float(gaps.mean())
    if count < 2:
        return Difference(value, -math.inf, math.inf, math.nan, count, None)
    spread = float(gaps.std(ddof=1))
    error = spread / math.sqrt(count)
    half = student(LEVEL, 2, count - 1) * error
    p = None
    if count >= LEAST_SEEDS:
        p = float(2 * t.sf(abs(value) / error, count - 1)) if error > 0 else float(value == 0.0)
    return Difference(value, value - half, value + half, spread, count, p)


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p-values, in the order given."""
    corrected, largest = [0.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = largest
    return corrected


def _sums(
    numerators: Sequence[float] | np.ndarray, denominators: Sequence[float] | np.ndarray, groups: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Both by group, shape (groups,) each."""
    names = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    member = np.array([names[group] for group in groups], dtype=np.intp)
    tops, bottoms = (
        np.bincount(member, weights=np.asarray(values, dtype=np.float64), minlength=len(names))
        for values in (numerators, denominators)
    )
    return tops, bottoms
