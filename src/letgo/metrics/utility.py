"""What the model still can: choice among answers, perplexity, and whether its text is text at all."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor

from letgo.core.errors import EmptyScoreError


def choice_accuracy(right: Tensor, wrong: Sequence[Tensor]) -> float:
    """1 if the right answer has a higher mean token log-probability than every wrong one, else 0. A tie is wrong:
    a model that gives all answers the same score knows nothing. Log-probabilities of shape (tokens,) each."""
    if not wrong or not len(right) or not all(len(logps) for logps in wrong):
        raise EmptyScoreError("a choice needs at least one wrong answer, and tokens in all of them")
    return float(float(right.mean()) > max(float(logps.mean()) for logps in wrong))


def harmonic_mean(values: Sequence[float]) -> float:
    """n / Σ 1/x, and 0 where one of the values is 0: TOFU's model utility is that of nine (probability, ROUGE and
    truth ratio on the retain set, on real authors and on world facts; arXiv 2401.06121, section 2.2.2)."""
    if not values:
        raise EmptyScoreError("a harmonic mean of nothing is not a score")
    if min(values) < 0:
        raise ValueError(f"a harmonic mean needs values of at least 0, not {min(values)}")
    return len(values) / sum(1.0 / value for value in values) if min(values) > 0 else 0.0


_WORD = re.compile(r"[^\W\d_]+", re.UNICODE)


def degeneration(text: str) -> float:
    """How degenerate a generated text is, 0 (text) to 1 (none): the largest of

    - 1 for an empty text;
    - the share of repeated word trigrams (0 below six words);
    - the share of characters, white space aside, that are in no word (digits and punctuation beyond a third).
    """
    dense = re.sub(r"\s+", "", text)
    if not dense:
        return 1.0
    words = [word.lower() for word in _WORD.findall(text)]
    outside = 1.0 - sum(map(len, words)) / len(dense)
    score = max(0.0, (outside - 1 / 3) * 1.5)
    if len(words) >= 6:
        trigrams = list(zip(words, words[1:], words[2:], strict=False))
        score = max(score, 1.0 - len(set(trigrams)) / len(trigrams))
    return score
