"""From per-sample scores to a value with its n and 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from letgo.core.errors import EmptyScoreError
from letgo.core.statistics import Interval, bounded, mean, ratio, unseen
from letgo.runs.results import Metric

_LARGEST_LOG = 700.0
"""exp of more is no float."""


def mean_metric(values: Sequence[float], groups: Sequence[str], bounds: Interval | None = (0.0, 1.0)) -> Metric:
    """The mean over samples, with its interval over groups.

    Samples of one group (two wordings of one fact, facts of one person) stand or fall together; an interval over single
    samples would be too narrow. Where all samples are of one group it is over samples all the same, for want of others.

    Args:
        values, groups: one each a sample.
        bounds: the range of the scores, inside which the interval stays. A value outside shows that there is none; None
            says so.
    """
    if not values:
        raise EmptyScoreError("a mean over zero samples is not a score")
    inside = bounds is not None and all(bounds[0] <= value <= bounds[1] for value in values)
    found = mean(values, apart(groups), bounds=bounds if inside else None)
    low, high = found.interval
    if math.isinf(low):  # One sample, and no range.
        least, most = bounds or (0.0, 1.0)
        low, high = min(least, found.value), max(most, found.value)
    return Metric(value=found.value, n=len(values), ci95=(low, high))


def perplexity_metric(totals: Sequence[float], tokens: Sequence[int], groups: Sequence[str]) -> Metric:
    """exp(−Σ log p / Σ tokens) over texts; the interval is Student's, of the logarithm. n counts texts.

    Args:
        totals: each text's summed token log-probability.
        tokens: each text's number of scored tokens.
        groups: as in `mean_metric`. A single text alone says nothing of others: its interval is the whole range.
    """
    if not totals or not sum(tokens):
        raise EmptyScoreError("perplexity over zero tokens is not a score")
    found = ratio(-np.asarray(totals, dtype=np.float64), tokens, apart(groups), ends=None)
    value, low, high = (math.exp(min(end, _LARGEST_LOG)) for end in (found.value, max(found.low, 0.0), found.high))
    return Metric(value=value, n=len(totals), ci95=(low, high))


def auc_metric(members: Sequence[float], others: Sequence[float]) -> Metric:
    """Membership AUC with its interval over the samples of both sides; n counts both."""
    from letgo.metrics.privacy import membership_auc

    value = membership_auc(members, others)
    return Metric(value=value, n=len(members) + len(others), ci95=auc_interval(value, wins(members, others)))


def auc_interval(auc: float, table: np.ndarray) -> Interval:
    """The interval of an AUC, inside [0, 1], from the `wins` of every pair. Its variance is that of the two sides'
    means (DeLong et al., Biometrics 44, 1988), as large at most as that of a share of the smaller side's samples."""
    size = min(table.shape)
    if size < 2:
        return 0.0, 1.0
    return bounded(auc, sides_variance(table) + unseen(auc, size, (0.0, 1.0)), size)


def sides_variance(table: np.ndarray) -> float:
    """The variance of the mean of a table over pairs, when the samples of both its sides are drawn."""
    return sum(float(np.var(table.mean(axis=1 - side), ddof=1)) / table.shape[side] for side in (0, 1))


def wins(members: Sequence[float], others: Sequence[float]) -> np.ndarray:
    """Whether the member of each pair is the larger, 1, ½ or 0, of shape (members, others): its mean is the AUC."""
    first, second = np.asarray(members, dtype=np.float64)[:, None], np.asarray(others, dtype=np.float64)[None]
    return (first > second) + 0.5 * (first == second)


def apart(groups: Sequence[str]) -> Sequence[str]:
    """The groups of samples; each sample by itself where all are of one group."""
    return groups if len(set(groups)) > 1 else [str(number) for number in range(len(groups))]
