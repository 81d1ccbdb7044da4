"""How much of an answer the model still holds: probability, ROUGE, truth ratio, forget quality."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from letgo.errors import EmptyScoreError


def probability(logps: Tensor) -> float:
    """P(a|q)^(1/|a|) = exp(mean token log-probability); `logps` of shape (tokens,) (TOFU, section 2.2.1)."""
    return math.exp(float(logps.double().mean()))


@functools.cache
def _rouge_scorer() -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l_recall(answer: str, generated: str) -> float:
    """ROUGE-L recall of the generated answer against the true one, with stemming (as TOFU's code has it)."""
    return float(_rouge_scorer().score(answer, generated)["rougeL"].recall)


def truth_ratio(right: Tensor, wrong: Sequence[Tensor]) -> float:
    """R = P̄(wrong) / P(right), with P = exp(mean token log-probability) and P̄ the geometric mean over wrong answers.

    Above 1 the model finds the wrong answers likelier (TOFU, equation 1). Log-probabilities of shape (tokens,) each.
    """
    if not wrong:
        raise EmptyScoreError("a truth ratio needs at least one wrong answer")
    mean_wrong = sum(float(logps.double().mean()) for logps in wrong) / len(wrong)
    # An unlearned model can make the right answer so unlikely that the ratio would overflow; 700 is exp's own limit.
    return math.exp(min(mean_wrong - float(right.double().mean()), 700.0))


def forget_quality(unlearned: Sequence[float], retrained: Sequence[float]) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test between truth ratios of the unlearned and the retrained model
    on the same forget rows (TOFU, section 2.2.2). High: indistinguishable."""
    from scipy.stats import ks_2samp

    if not unlearned or not retrained:
        raise EmptyScoreError("forget quality needs truth ratios of both models")
    return float(ks_2samp(list(unlearned), list(retrained)).pvalue)
