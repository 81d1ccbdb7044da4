"""How much of the forgetting an attack leaves, with its interval, and how much usefulness the model loses.

Pure functions of metrics and of recorded samples (objects with `set`, `id`, `group` and `scores`): attacks and the
report both judge by them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from letgo.metrics.records import Headline
from letgo.metrics.summary import quantiles95
from letgo.runs.results import Metrics

LEAST_FORGETTING = 0.1
"""A metric counts as forgotten only if it fell by this share of what could have fallen."""
RESAMPLES = 2000
_SEED = 20240607


@dataclass(frozen=True)
class Scored:
    """One headline's per-item scores: before and after unlearning, and under an attack by seed.

    `attacked` has shape (seeds, items), NaN where a seed is not judged on an item (its group was trained on).
    """

    groups: Sequence[str]
    before: np.ndarray
    after: np.ndarray
    attacked: np.ndarray
    floor: float = 0.0


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
    return float(kept_shares(np.float64(before), np.float64(after), np.float64(attacked), floor=floor))


def kept_shares(before: Any, after: Any, attacked: Any, *, floor: float = 0.0) -> np.ndarray:
    """`kept_share` of arrays; NaN (a draw without a judged item) stays NaN."""
    forgotten = before - after
    little = (forgotten <= LEAST_FORGETTING * np.maximum(before - floor, 0.0)) | (forgotten <= 0.0)
    shares = np.clip((before - attacked) / np.where(little, 1.0, forgotten), 0.0, 1.0)
    return np.where(little & ~np.isnan(forgotten), 0.0, shares)


def shared_headlines(headlines: Sequence[Headline], *measured: Mapping[str, object]) -> list[Headline]:
    """The headlines that all of these metrics have."""
    return [h for h in headlines if all(h.metric in metrics for metrics in measured)]


def smallest_share(headlines: Sequence[Headline], before: Metrics, after: Metrics, attacked: Metrics) -> float | None:
    """The smallest share kept over the headlines measured before, after and under the attack; None without any."""
    shares = [
        kept_share(before[h.metric].value, after[h.metric].value, attacked[h.metric].value, floor=h.floor)
        for h in shared_headlines(headlines, before, after, attacked)
    ]
    return min(shares) if shares else None


def kept_interval(heads: Sequence[Scored]) -> tuple[float, float]:
    """95 % bootstrap interval of `kept`: the mean over seeds of the smallest share over headlines.

    Whole groups are drawn, the same for before, after and attack (what was well known before is easily relearned: the
    three go together), and seeds with them.
    """
    names = {group: number for number, group in enumerate(dict.fromkeys(g for head in heads for g in head.groups))}
    seeds = len(heads[0].attacked)
    generator = np.random.default_rng(_SEED)
    drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES).astype(float)
    smallest = np.full((RESAMPLES, seeds), np.nan)
    for head in heads:
        member = np.array([names[group] for group in head.groups])
        for seed in range(seeds):
            judged = ~np.isnan(head.attacked[seed])
            count, before, after, attacked = (
                drawn @ np.bincount(member[judged], weights=values[judged], minlength=len(names))
                for values in (np.ones_like(head.before), head.before, head.after, head.attacked[seed])
            )
            with np.errstate(divide="ignore", invalid="ignore"):
                shares = kept_shares(before / count, after / count, attacked / count, floor=head.floor)
            smallest[:, seed] = np.fmin(smallest[:, seed], shares)
    picked = generator.integers(0, seeds, size=(RESAMPLES, seeds))
    shares = np.take_along_axis(smallest, picked, axis=1)
    # A draw without a group on which a seed is judged has no share for that seed.
    counts = (~np.isnan(shares)).sum(axis=1)
    return quantiles95(np.nansum(shares, axis=1)[counts > 0] / counts[counts > 0])


def headline_scores(
    headline: Headline,
    before: Sequence[Any],
    after: Sequence[Any],
    attacked: Sequence[Sequence[Any]],
    values: Mapping[str, Sequence[float]],
) -> Scored | None:
    """The per-item scores behind a headline metric, where it is a plain mean of one score over one set.

    Args:
        headline: such as forget_probability: score "probability" over set "forget".
        before, after, attacked: samples; of the attack those judged, by seed.
        values: the metric as the benchmark computes it: "before" and "after" over the same items as each seed, and
            "attacked", by seed. If the means don't agree with it, the metric is not such a mean: None.
    """
    prefix, _, score = headline.metric.partition("_")
    old, new, *seeds = (
        {s.id: s for s in samples if s.set == prefix and score in s.scores} for samples in (before, after, *attacked)
    )
    ids = [item for item in old if item in new and any(item in seed for seed in seeds)]
    if not ids:
        return None
    table = np.array([[seed[item].scores[score] if item in seed else np.nan for item in ids] for seed in seeds])
    first = np.array([old[item].scores[score] for item in ids])
    second = np.array([new[item].scores[score] for item in ids])
    for number, row in enumerate(table):
        judged = ~np.isnan(row)
        if judged.sum() != len(seeds[number]):
            return None
        for name, scores in (("before", first), ("after", second), ("attacked", row)):
            if abs(scores[judged].mean() - values[name][number]) > 1e-6:
                return None
    return Scored([old[item].group for item in ids], first, second, table, headline.floor)


def kept_interval_of_metrics(
    headlines: Sequence[Headline], before: Metrics, after: Metrics, attacked: Metrics
) -> tuple[float, float]:
    """For headlines that are no plain means: `kept` at the two ends of the attacked metrics' intervals, with before and
    after taken as they are. Narrower than it should be; the documentation says so."""
    ends = []
    for end in (1, 0):
        three = ((before[h.metric].value, after[h.metric].value, attacked[h.metric].ci95[end]) for h in headlines)
        ends.append(min(kept_share(*values, floor=h.floor) for h, values in zip(headlines, three, strict=True)))
    return min(ends), max(ends)


def utility_names(headlines: Sequence[Headline], metrics: Metrics) -> list[str]:
    """The metrics of a model's usefulness: a benchmark's own utility, the retain set's counterparts of its headlines,
    and general perplexity."""
    wanted = [h.metric.replace("forget_", "retain_", 1) for h in headlines]
    utilities = [name for name in metrics if "utility" in name]
    return [name for name in dict.fromkeys([*utilities, *wanted, "general_perplexity"]) if name in metrics]


def utility_loss(headlines: Sequence[Headline], before: Metrics, now: Metrics) -> float | None:
    """The largest relative loss over the utility metrics, at least 0: (b − a)/b, and of perplexity (a − b)/b. None
    where none was measured."""
    losses = []
    for name in utility_names(headlines, before):
        if name not in now or before[name].value <= 0:
            continue
        change = (now[name].value - before[name].value) / before[name].value
        losses.append(change if "perplexity" in name else -change)
    return max(0.0, *losses) if losses else None


def collapse_reasons(before: Metrics, after: Metrics) -> list[str]:
    """Why a model is broken rather than forgetful; empty where it is not.

    Either general perplexity more than doubled, or the text that it writes has become degenerate: its mean degeneration
    grew by more than 0.3.
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
