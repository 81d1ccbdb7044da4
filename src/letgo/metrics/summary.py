"""From per-sample scores to a value with its n and 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from letgo.core.errors import EmptyScoreError
from letgo.runs.results import Metric

RESAMPLES = 2000
SEED = 20240607


def quantiles95(draws: Any) -> tuple[float, float]:
    """The 95 % interval of values drawn again."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def mean_metric(values: Sequence[float], groups: Sequence[str]) -> Metric:
    """The mean over samples, with a bootstrap interval that resamples whole groups.

    Samples of one group (two wordings of one fact, facts of one person) stand or fall together; resampling them one by
    one would make the interval too narrow. Where every value is the same 0 or 1 the bootstrap sees no spread, and
    Wilson's interval for as many trials as there are groups is given instead.
    """
    if not values:
        raise EmptyScoreError("a mean over zero samples is not a score")
    array = np.asarray(values, dtype=np.float64)
    value = float(array.mean())
    if set(values) <= {0.0, 1.0} and len(set(values)) == 1:
        return Metric(value=value, n=len(values), ci95=_wilson(value, len(set(groups))))
    return Metric(value=value, n=len(values), ci95=_bootstrap(array, np.ones_like(array), groups, lambda m: m))


def perplexity_metric(totals: Sequence[float], tokens: Sequence[int], groups: Sequence[str]) -> Metric:
    """exp(−Σ log p / Σ tokens) over texts, with a bootstrap interval over texts; n counts texts.

    Args:
        totals: each text's summed token log-probability.
        tokens: each text's number of scored tokens.
        groups: as in `mean_metric`.
    """
    if not totals or not sum(tokens):
        raise EmptyScoreError("perplexity over zero tokens is not a score")

    def exp(mean: Any) -> Any:
        return np.exp(np.minimum(-mean, 700.0))

    numerator, denominator = np.asarray(totals, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    value = float(exp(numerator.sum() / denominator.sum()))
    return Metric(value=value, n=len(totals), ci95=_bootstrap(numerator, denominator, groups, exp))


def auc_metric(members: Sequence[float], others: Sequence[float]) -> Metric:
    """Membership AUC with a bootstrap interval over both sides; n counts both.

    Where every member is on one side of every other the bootstrap sees no spread: `separated` gives the interval.
    """
    from letgo.metrics.privacy import membership_auc

    value, count = membership_auc(members, others), len(members) + len(others)
    if value in (0.0, 1.0):
        return Metric(value=value, n=count, ci95=separated(value, len(members), len(others)))
    table = wins(members, others)
    generator = np.random.default_rng(SEED)
    draws = [
        table[
            generator.integers(0, len(members), len(members))[:, None],
            generator.integers(0, len(others), len(others))[None],
        ].mean()
        for _ in range(500)
    ]
    return Metric(value=value, n=count, ci95=quantiles95(draws))


def separated(auc: float, members: int, others: int) -> tuple[float, float]:
    """The interval of an AUC of 0 or 1: Wilson's, for as many trials as the smaller side has samples."""
    return _wilson(auc, min(members, others))


def wins(members: Sequence[float], others: Sequence[float]) -> np.ndarray:
    """Whether the member of each pair is the larger, 1, ½ or 0, of shape (members, others): its mean is the AUC."""
    first, second = np.asarray(members, dtype=np.float64)[:, None], np.asarray(others, dtype=np.float64)[None]
    return (first > second) + 0.5 * (first == second)


def drawn_groups(
    numerator: np.ndarray, denominator: np.ndarray, groups: Sequence[str], *, seed: int | list[int] = SEED
) -> np.ndarray:
    """Σ numerator / Σ denominator over groups drawn again with replacement, (RESAMPLES,)."""
    names = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    member = np.array([names[group] for group in groups])
    tops = np.bincount(member, weights=numerator, minlength=len(names))
    bottoms = np.bincount(member, weights=denominator, minlength=len(names))
    # A separate generator with a fixed seed: the same samples give the same interval everywhere.
    draws = np.random.default_rng(seed).integers(0, len(names), size=(RESAMPLES, len(names)))
    return tops[draws].sum(axis=1) / bottoms[draws].sum(axis=1)


def _bootstrap(
    numerator: np.ndarray, denominator: np.ndarray, groups: Sequence[str], transform: Callable[[np.ndarray], np.ndarray]
) -> tuple[float, float]:
    return quantiles95(transform(drawn_groups(numerator, denominator, groups)))


def _wilson(value: float, n: int) -> tuple[float, float]:
    z = 1.959963984540054
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    return (max(0.0, centre - half), min(1.0, centre + half))
