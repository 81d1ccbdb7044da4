"""Intervals and comparisons from few groups and few seeds: the one place where letgo does statistics.

A group is what stands or falls together (a person, a country, a document); its questions are not independent, its
wordings even less. All intervals are over groups. A percentile bootstrap over 5 groups covers 48 to 91 % where it says
95 %; Student's t is better, but not enough where scores have ends (0 and 1) and pile up there: five groups of which
none shows a rare full score look as if there were no spread at all. So for means and shares a small part of a group
counts at either end, and the interval of a mean stays inside its range. `perf/intervals.py` measures all of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
LEAST_SEEDS = 3
"""With fewer paired seeds a difference has a spread but no p-value."""
UNSEEN = 1 / 25
"""√n times this is the part of a group that counts at either end of a range beside n groups. Chosen by measurement: the
means of which a tenth to a half of the groups is near the other end are covered in 92 to 98 of 100 samples from 5
groups on."""
_OVERFLOWS = 1e100
"""Errors of a broken model that are larger have no cube; nothing is known then."""

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


def ratio(
    numerators: Sequence[float] | np.ndarray,
    denominators: Sequence[float] | np.ndarray,
    groups: Sequence[str],
    *,
    level: float = LEVEL,
    sides: int = 2,
    ends: Interval | None = (0.0, 1.0),
) -> Estimate:
    """Σ numerators / Σ denominators, both of any sign, with its interval over groups.

    R = Σ_g x_g / Σ_g y_g of the groups' sums; its error is that of the linearised ratio, s² = n/(n−1) · Σ_g (x_g −
    R·y_g)² / (Σ_g y_g)², and the interval R ± t_{n−1}·s (Cochran, Sampling Techniques, 3rd ed., section 6.3). To s² is
    added what `UNSEEN` groups at either end would. Where the errors are skewed, the interval is longer on that side, by
    (1 + 2t²)·μ₃/6s² (Johnson, Journal of the American Statistical Association 73, 1978).

    Args:
        numerators, denominators, groups: one each a sample.
        level: of the interval.
        sides: 1 for one-sided bounds: each end then holds at the level by itself.
        ends: what the ratio of a single group can be at the least and at the most (a share: nothing, all). It is no
            bound of the interval. None where there is no such range.
    """
    value, errors, _ = _linearised(numerators, denominators, groups)
    count = len(errors)
    if math.isnan(value) or count < 2:
        return Estimate(value, -math.inf, math.inf, count)
    if float(np.abs(errors).max()) > _OVERFLOWS:
        return Estimate(value, -math.inf, math.inf, count)
    t, variance = student(level, sides, count - 1), _variance(value, errors, count, ends)
    half, skew = t * math.sqrt(variance), 0.0
    if count > 2 and variance > 0.0:
        third = count * count / ((count - 1) * (count - 2)) * float((errors**3).sum())
        skew = (1 + 2 * t * t) * third / (6 * variance)
    return Estimate(value, value - half + min(skew, 0.0), value + half + max(skew, 0.0), count)


def mean(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[str],
    *,
    level: float = LEVEL,
    bounds: Interval | None = None,
) -> Estimate:
    """The mean over samples, with its interval over groups; inside the bounds of the scores where they are given."""
    if bounds is None:
        return ratio(values, np.ones(len(values)), groups, level=level, ends=None)
    least, most = bounds
    value, errors, shares = _linearised((np.asarray(values) - least) / (most - least), np.ones(len(values)), groups)
    size = 1.0 / float(shares @ shares)
    low, high = 0.0, 1.0
    if len(errors) > 1:
        low, high = bounded(value, _variance(value, errors, size, (0.0, 1.0)), size, level=level)
    value, low, high = (least + end * (most - least) for end in (value, low, high))
    return Estimate(value, low, high, len(errors))


def bounded(value: float, variance: float, size: float, *, level: float = LEVEL) -> Interval:
    """The interval of a mean of scores between 0 and 1, inside [0, 1]: all μ with (value − μ)² ≤ c · μ(1 − μ).

    This is Wilson's interval with c = z²φ/n (Journal of the American Statistical Association 22, 1927), where φ ≤ 1 is
    the variance over groups as a part of that of a score which is 0 or 1, estimated from the samples and from the two
    ends (`UNSEEN`). Student's t in the place of z would cover 99 % at 5 groups.

    Args:
        value, variance: of the mean.
        size: n, the number of groups; of groups of unlike sizes that of even ones with the same weight.
    """
    full = value * (1.0 - value)
    part = min(variance * size / full, 1.0) if full > 0.0 else 1.0
    c = NormalDist().inv_cdf((1.0 + level) / 2) ** 2 * part / size
    centre, half = value + c / 2, math.sqrt(c * max(full, 0.0) + c * c / 4)
    return max(0.0, (centre - half) / (1 + c)), min(1.0, (centre + half) / (1 + c))


@lru_cache(maxsize=1024)
def student(level: float, sides: int, freedom: float) -> float:
    """Student's t quantile that leaves 1 − level outside, on one side or on both."""
    # Of `scipy.special`, here and below: `scipy.stats` takes half a second to import and calls the same functions.
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 1.0 - (1.0 - level) / sides))


def proportion_bound(hits: int, trials: int, *, level: float = LEVEL) -> float:
    """The one-sided upper bound of a proportion (Clopper and Pearson, Biometrika 26, 1934): the largest share under
    which so few hits would still be seen with probability 1 − level. Of no trials it is 1."""
    from scipy.special import betaincinv

    return 1.0 if hits >= trials else float(betaincinv(hits + 1, trials - hits, level))


@dataclass(frozen=True)
class Difference:
    """How much the first of two settings is above the second, over paired seeds.

    Attributes:
        value: the mean difference; `low` and `high` its 95 % interval, infinite with one seed.
        spread: the standard deviation over seeds; NaN with one.
        p: two-sided, from Student's paired test; None with fewer than `LEAST_SEEDS` seeds, or where they differ alike
            to the bit (shares kept end at 0 and 1), which is no estimate of an error.
    """

    value: float
    low: float
    high: float
    spread: float
    seeds: int
    p: float | None


def paired(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare two settings, seed by seed: `first[i]` and `second[i]` had the same seed."""
    from scipy.special import stdtr

    gaps = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    count, value = len(gaps), float(gaps.mean())
    if count < 2:
        return Difference(value, -math.inf, math.inf, math.nan, count, None)
    spread = float(gaps.std(ddof=1))
    error = spread / math.sqrt(count)
    half = student(LEVEL, 2, count - 1) * error
    p = None
    if count >= LEAST_SEEDS and error > 0:
        p = float(2 * stdtr(count - 1, -abs(value) / error))
    elif count >= LEAST_SEEDS and value == 0.0:
        p = 1.0
    return Difference(value, value - half, value + half, spread, count, p)


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p-values, in the order given."""
    corrected, largest = [0.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = largest
    return corrected


def unseen(value: float, size: float, ends: Interval) -> float:
    """What `UNSEEN` groups at either end add to the variance of a mean over `size` groups."""
    return UNSEEN * ((value - ends[0]) ** 2 + (ends[1] - value) ** 2) / (math.sqrt(size) * (size - 1.0))


def _variance(value: float, errors: np.ndarray, size: float, ends: Interval | None) -> float:
    """Of a ratio, from the groups' errors."""
    count = len(errors)
    return count / (count - 1) * float(errors @ errors) + (0.0 if ends is None else unseen(value, size, ends))


def _linearised(
    numerators: Sequence[float] | np.ndarray, denominators: Sequence[float] | np.ndarray, groups: Sequence[str]
) -> tuple[float, np.ndarray, np.ndarray]:
    """A ratio (NaN over nothing), and by group, shape (groups,): its error (x_g − R·y_g) / Σ y, and its part of Σ y."""
    names = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    member = np.array([names[group] for group in groups], dtype=np.intp)
    tops, bottoms = (
        np.bincount(member, weights=np.asarray(values, dtype=np.float64), minlength=len(names))
        for values in (numerators, denominators)
    )
    bottom = float(bottoms.sum())
    if bottom == 0.0:
        return math.nan, np.zeros(len(names)), np.zeros(len(names))
    value = float(tops.sum()) / bottom
    return value, (tops - value * bottoms) / bottom, bottoms / bottom
