"""How much of an answer the model still holds: probability, ROUGE, truth ratio, words that it foresees."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from letgo.core.errors import EmptyScoreError
from letgo.metrics.rouge import rouge_l


def probability(logps: Tensor) -> float:
    """P(a|q)^(1/|a|) = exp(mean token log-probability); `logps` of shape (tokens,) (TOFU, section 2.2.1).

    Raises `EmptyScoreError` for an answer of no tokens, as all of this module do.
    """
    return math.exp(_mean(logps))


def normalised_probability(right: Tensor, wrong: Sequence[Tensor]) -> float:
    """p(a) / (p(a) + Σ p(wrong)) with p = `probability`: TOFU's score of real authors and world facts."""
    if not wrong:
        raise EmptyScoreError("a share of the probability needs at least one wrong answer")
    share = probability(right)
    whole = share + sum(probability(logps) for logps in wrong)
    # All of them may be too small for a float; then the right one has no more than its even share.
    return share / whole if whole > 0 else 1.0 / (1 + len(wrong))


def rouge_l_recall(answer: str, generated: str) -> float:
    """ROUGE-L recall of the generated answer against the true one, with stemming (as TOFU's code has it)."""
    return rouge_l(answer, generated, stem=True).recall


def rouge_l_f1(answer: str, generated: str) -> float:
    """ROUGE-L F1 of the generated answer and the true one, without stemming (as MUSE's code has it), 0 to 1."""
    return rouge_l(answer, generated, stem=False).f1


def exact_match(answer: str, generated: str) -> float:
    """1 if the generated text is the true one, letter for letter but for white space at the ends and case; else 0."""
    return float(answer.strip().casefold() == generated.strip().casefold())


def truth_ratio(right: Tensor, wrong: Sequence[Tensor]) -> float:
    """R = P̄(wrong) / P(right), with P = exp(mean token log-probability) and P̄ the geometric mean over wrong answers.

    Above 1 the model finds the wrong answers likelier (TOFU, equation 1). Log-probabilities of shape (tokens,) each.
    """
    if not wrong:
        raise EmptyScoreError("a truth ratio needs at least one wrong answer")
    mean_wrong = sum(_mean(logps) for logps in wrong) / len(wrong)
    # An unlearned model can make the right answer so unlikely that the ratio would overflow; 700 is exp's own limit.
    return math.exp(min(mean_wrong - _mean(right), 700.0))


def truth_ratio_score(ratio: float, *, forget: bool) -> float:
    """What TOFU averages of a truth ratio R: min(R, 1/R) on the forget set, where 1 is best (wrong answers as likely
    as right ones); max(0, 1 − R) on the other sets."""
    if forget:
        return min(ratio, 1.0 / ratio) if ratio > 0.0 else 0.0
    return max(0.0, 1.0 - ratio)


def truth_ratio_prob_mean(ratio: float) -> float:
    """P(right) / (P(right) + P̄(wrong)) = 1 / (1 + R), with P, P̄ and R of `truth_ratio`: what open-unlearning averages
    on every set under its aggregator `prob_mean`. 0.5 where wrong answers are as likely as right ones."""
    return 1.0 / (1.0 + ratio)


def forget_quality(unlearned: Sequence[float], retrained: Sequence[float]) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test between truth ratios of the unlearned and the retrained model
    on the same forget rows (TOFU, section 2.2.2). High: indistinguishable. Two samples of n without overlap give
    2/C(2n, n)."""
    from scipy.stats import ks_2samp

    if not unlearned or not retrained:
        raise EmptyScoreError("forget quality needs truth ratios of both models")
    return float(ks_2samp(list(unlearned), list(retrained)).pvalue)


def extraction_strength(matches: Sequence[bool] | Tensor) -> float:
    """1 − k*/n, with k* the length of the shortest prefix of the n tokens after which every token is the likeliest.

    An answer of which not even the last token is foreseen scores 0 (open-unlearning counts k* up to n − 1 at most, and
    gives 1/n there).

    Args:
        matches: whether each token is the likeliest at its place (`Scores.matches`).
    """
    values = _flags(matches)
    wrong = [index for index, match in enumerate(values) if not match]
    return 1.0 - (wrong[-1] + 1) / len(values) if wrong else 1.0


def exact_memorization(matches: Sequence[bool] | Tensor) -> float:
    """The share of tokens that are the likeliest at their place; `matches` as in `extraction_strength`."""
    values = _flags(matches)
    return sum(values) / len(values)


def _mean(logps: Tensor) -> float:
    if not len(logps):
        raise EmptyScoreError("an answer of no tokens has no probability")
    return float(logps.double().mean())


def _flags(matches: Sequence[bool] | Tensor) -> list[bool]:
    values = [bool(match) for match in matches]
    if not values:
        raise EmptyScoreError("an answer of no tokens can't be memorised")
    return values
