"""Whether a model is forgetful or broken, and how much of the forgetting an attack leaves."""

from __future__ import annotations

import numpy as np

from letgo.runs.results import Metrics

LEAST_FORGETTING = 0.1
"""A metric counts as forgotten only if it fell by this share of what could have fallen."""


def kept_share(before: float, after: float, attacked: float, *, floor: float = 0.0) -> float:
    """The share of the forgetting that is still there after an attack, 0…1, for a metric that forgetting lowers:

        kept = clip( (before − attacked) / (before − after), 0, 1 )

    Args:
        before: the metric before unlearning.
        after: after unlearning.
        attacked: after the attack.
        floor: what a model that knows nothing scores (1/4 for a choice of four).

    A run that has hardly forgotten (less than `LEAST_FORGETTING` of `before − floor`) has nothing to keep: 0.
    """
    forgotten = before - after
    if forgotten <= LEAST_FORGETTING * max(before - floor, 0.0) or forgotten <= 0.0:
        return 0.0
    return min(max((before - attacked) / forgotten, 0.0), 1.0)


def kept_shares(before: np.ndarray, after: np.ndarray, attacked: np.ndarray, *, floor: float = 0.0) -> np.ndarray:
    """`kept_share` of arrays; NaN, where nothing was measured, stays NaN."""
    forgotten = before - after
    little = (forgotten <= LEAST_FORGETTING * np.maximum(before - floor, 0.0)) | (forgotten <= 0.0)
    shares = np.clip((before - attacked) / np.where(little, 1.0, forgotten), 0.0, 1.0)
    return np.where(little & ~np.isnan(forgotten), 0.0, shares)


def collapse_reasons(before: Metrics, after: Metrics) -> list[str]:
    """Why a model is broken rather than forgetful; empty where it is not.

    General perplexity more than doubled, or the text that it writes by itself has become degenerate: its mean
    degeneration grew by more than 0.3.
    """
    reasons = []
    if "general_perplexity" in before and "general_perplexity" in after:
        old, new = before["general_perplexity"].value, after["general_perplexity"].value
        if new > 2 * old:
            reasons.append(f"general perplexity more than doubled: {old:.1f} → {new:.3g}")
    if "general_degenerate" in before and "general_degenerate" in after:
        old, new = before["general_degenerate"].value, after["general_degenerate"].value
        if new > old + 0.3:
            reasons.append(f"the text it writes has become degenerate: {old:.2f} → {new:.2f} (0 text, 1 none)")
    return reasons
