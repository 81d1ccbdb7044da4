"""Membership inference: can the text of the forget set be told from text never seen?"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from letgo.errors import EmptyScoreError


def min_k(logps: Tensor, k: float = 0.4) -> float:
    """Mean of the int(k·n) smallest token log-probabilities, `logps` of shape (n,) (Min-K% Prob; MUSE uses k = 0.4).

    The larger, the more familiar the text. Raises `EmptyScoreError` where int(k·n) is zero.
    """
    count = int(k * len(logps))
    if count < 1:
        raise EmptyScoreError(f"Min-K at {k:.0%} of {len(logps)} tokens counts no token")
    return float(logps.double().sort().values[:count].mean())


def membership_auc(members: Sequence[float], others: Sequence[float]) -> float:
    """P(score of a member > score of a non-member), ties half: the area under the ROC curve. 0.5 is chance."""
    if not members or not others:
        raise EmptyScoreError("a membership AUC needs members and non-members")
    from scipy.stats import mannwhitneyu

    statistic = mannwhitneyu(list(members), list(others)).statistic
    return float(statistic) / (len(members) * len(others))


def privacy_leakage(auc: float, retrained_auc: float) -> float:
    """PrivLeak = 100 · (AUC − AUC_retrain) / AUC_retrain, in per cent (MUSE, section 3.1).

    AUC with the forget set as *non*-members, as MUSE has it: `auc = 1 − membership_auc(forget, holdout)`. Negative:
    the forget set is still recognised. Positive: it stands out as too unlikely, over-unlearned.
    """
    if retrained_auc <= 0:
        raise EmptyScoreError("PrivLeak is undefined for a retrained AUC of zero")
    return 100.0 * (auc - retrained_auc) / retrained_auc
