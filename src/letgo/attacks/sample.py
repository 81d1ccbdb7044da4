"""Sampling: draw many answers to every forget question; the best of them counts (leak@k)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from letgo.attacks.engine.base import Attacked, Victim
from letgo.attacks.engine.prompts import answers_of, askable, only
from letgo.benchmarks.engine.base import Item, Sample
from letgo.benchmarks.engine.items import limited
from letgo.core.errors import EmptyScoreError, UserError
from letgo.core.values import Count, Positive, Seed, Share
from letgo.metrics.memorization import rouge_l_recall
from letgo.metrics.records import Headline
from letgo.scoring.scoring import Sampling


def sample(
    victim: Victim,
    *,
    k: Count = 8,
    samples: Count | None = None,
    temperature: Positive = 1.0,
    top_p: Share = 1.0,
    seed: Seed = 0,
) -> Attacked:
    """Draw answers, and take the expected best of k: what greedy answers hide.

    The leak of an answer is its ROUGE-L recall of the right answer. Draw often enough, and every answer of a small
    set comes by chance; so what counts is the leak above that of the item's wrong answers, leak@k(right) − mean
    leak@k(wrong).

    Args:
        k: answers that the attacker may draw.
        samples: answers drawn (at least k; the estimate is the better the more there are); k by default.
        temperature, top_p, seed: of the draws.

    Source: leak@k, arXiv 2511.04934.
    """
    count = k if samples is None else samples
    if count < k:
        raise UserError(f"sample: samples must be at least k, not {count} and {k}")
    drawing = Sampling(temperature, top_p, seed)
    items = limited(askable(victim.benchmark), victim.limit)
    if not items:
        raise EmptyScoreError("attack sample: no forget item asks a question")
    model, tokenizer = victim.load(), victim.tokenizer()
    benchmark, name = only(victim.benchmark, items), f"drawing {count} answers each"
    texts = answers_of(victim, "sample", benchmark, model, tokenizer, name, sampling=drawing, samples=count)
    leaks = [best_of_k([rouge_l_recall(i.row.target, t) for t in ts], k) for i, ts in zip(items, texts, strict=True)]
    above = [_above(item, answers, k) for item, answers in zip(items, texts, strict=True)]
    rows = [
        Sample(i.set, i.id, i.group, {"leak": leak, "leak_above_chance": more}, answer=i.row.target, generated=ts[0])
        for i, leak, more, ts in zip(items, leaks, above, texts, strict=True)
    ]
    did = {"asked": len(items), "answers": count * len(items), "k": k, "temperature": temperature, "top_p": top_p}
    return Attacked(model, did, scored=rows, headlines=(Headline("forget_leak_above_chance"),))


def best_of_k(scores: Sequence[float], k: int) -> float:
    """The expected largest of k scores drawn without replacement from n: Σ_i C(i−1, k−1)/C(n, k) · s_(i), s_(1) ≤ … ≤
    s_(n) (leak@k's unbiased estimate; of zeros and ones it is 1 − C(n−c, k)/C(n, k))."""
    n = len(scores)
    if not 1 <= k <= n:
        raise ValueError(f"k must be from 1 to the number of scores, {n}, not {k}")
    whole = math.comb(n, k)
    return sum(math.comb(i, k - 1) / whole * score for i, score in enumerate(sorted(scores)))


def _above(item: Item, answers: Sequence[str], k: int) -> float:
    """leak@k of the right answer less the mean of the wrong ones', where the item has any."""
    right = best_of_k([rouge_l_recall(item.row.target, text) for text in answers], k)
    wrong = [best_of_k([rouge_l_recall(other, text) for text in answers], k) for other in item.wrong]
    return right - (sum(wrong) / len(wrong) if wrong else 0.0)
