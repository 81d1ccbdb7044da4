"""What the model still can: choice among answers, perplexity, and whether its text is text at all."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor

from letgo.errors import EmptyScoreError


def choice_accuracy(right: Tensor, wrong: Sequence[Tensor]) -> float:
    """1 if the right answer has a higher mean token log-probability than every wrong one, else 0. A tie is wrong:
    a model that gives all answers the same score knows nothing. Log-probabilities of shape (tokens,) each."""
    if not wrong:
        raise EmptyScoreError("a choice needs at least one wrong answer")
    return float(float(right.mean()) > max(float(logps.mean()) for logps in wrong))


def perplexity(logps: Sequence[Tensor]) -> float:
    """exp(−Σ log p / Σ tokens) over texts; `logps` one tensor of shape (tokens,) a text."""
    tokens = sum(len(text) for text in logps)
    if not tokens:
        raise EmptyScoreError("perplexity needs at least one token")
    total = -sum(float(text.double().sum()) for text in logps) / tokens
    return float(2.718281828459045 ** min(total, 700.0))


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
