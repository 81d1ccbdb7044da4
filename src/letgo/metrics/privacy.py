"""Membership inference: do the scores of forget texts differ from those of texts never seen?

Every score here is the larger, the more familiar the text is to the model, so that members score high.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from torch import Tensor

from letgo.core.errors import EmptyScoreError

_LEAST_DEVIATION = 1e-6
"""Where the model is certain, the deviation is 0 and so is what is divided by it."""


def loss_score(logps: Tensor) -> float:
    """Mean token log-probability, the negative loss; `logps` of shape (n,) (Yeom et al., arXiv 1709.01604).

    Raises `EmptyScoreError` for a text of no tokens, as all scores of this module do.
    """
    if not len(logps):
        raise EmptyScoreError("a text of no tokens has no membership score")
    return float(logps.double().mean())


def zlib_score(logps: Tensor, text: str) -> float:
    """Mean token log-probability per byte of the text compressed by zlib (Carlini et al., arXiv 2012.07805; as the
    published code of Min-K% and of TOFU's successors has it: the mean, not the sum)."""
    return loss_score(logps) / len(zlib.compress(text.encode("utf-8")))


def reference_score(logps: Tensor, reference: Tensor) -> float:
    """Mean token log-probability less that of a reference model on the same text (Carlini et al., arXiv 2012.07805).
    The two models may have different tokens."""
    return loss_score(logps) - loss_score(reference)


def min_k(logps: Tensor, k: float = 0.4) -> float:
    """Mean of the int(k·n) smallest token log-probabilities, `logps` of shape (n,) (Min-K% Prob, arXiv 2310.16789;
    MUSE uses k = 0.4).

    Raises `EmptyScoreError` where int(k·n) is zero.
    """
    count = int(k * len(logps))
    if count < 1:
        raise EmptyScoreError(f"Min-K at {k:.0%} of {len(logps)} tokens counts no token")
    return float(logps.double().sort().values[:count].mean())


def min_k_plus_plus(logps: Tensor, means: Tensor, deviations: Tensor, k: float = 0.2) -> float:
    """Mean of the int(k·n) smallest normalised log-probabilities (log p(x_t) − μ_t)/σ_t, with μ and σ the mean and
    standard deviation of log p(z) over the vocabulary under p (Min-K%++, arXiv 2404.02936).

    Args:
        logps, means, deviations: of shape (n,) each, as `score(…, statistics=True)` gives them.
        k: the share that counts.
    """
    return min_k((logps.double() - means.double()) / deviations.double().clamp(min=_LEAST_DEVIATION), k)


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
