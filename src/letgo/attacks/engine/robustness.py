"""How much of the forgetting is kept, with its interval, and what it cost the model's usefulness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from letgo.benchmarks.engine.base import Benchmark, Sample
from letgo.metrics.records import Headline
from letgo.metrics.robustness import kept_share, kept_shares
from letgo.runs.results import Metrics

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


def interval(heads: Sequence[Scored]) -> tuple[float, float]:
    """95 % bootstrap interval of `kept`: the mean over seeds of the smallest share over headlines.

    Whole groups are drawn, the same for before, after and attack (what was well known before is easily relearned: the
    three go together), and seeds with them.
    """
    names = {group: place for place, group in enumerate(dict.fromkeys(g for head in heads for g in head.groups))}
    seeds = len(heads[0].attacked)
    generator = np.random.default_rng(_SEED)
    drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES).astype(float)
    smallest = np.full((RESAMPLES, seeds), np.nan)
    for head in heads:
        member = np.array([names[group] for group in head.groups])
        for seed in range(seeds):
            judged = ~np.isnan(head.attacked[seed])
            sums = [
                _by_group(values, member, judged, len(names))
                for values in (np.ones_like(head.before), head.before, head.after, head.attacked[seed])
            ]
            count, before, after, attacked = (drawn @ one for one in sums)
            with np.errstate(divide="ignore", invalid="ignore"):
                drawn_shares = kept_shares(before / count, after / count, attacked / count, floor=head.floor)
            smallest[:, seed] = np.fmin(smallest[:, seed], drawn_shares)
    picked = generator.integers(0, seeds, size=(RESAMPLES, seeds))
    shares = np.take_along_axis(smallest, picked, axis=1)
    # A draw of groups that holds none that a seed is judged on says nothing of that seed.
    counts = (~np.isnan(shares)).sum(axis=1)
    means = np.nansum(shares, axis=1)[counts > 0] / counts[counts > 0]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _by_group(values: np.ndarray, member: np.ndarray, judged: np.ndarray, groups: int) -> np.ndarray:
    return np.bincount(member[judged], weights=values[judged], minlength=groups)


def headline_scores(
    headline: Headline,
    before: Sequence[Sample],
    after: Sequence[Sample],
    attacked: Sequence[Sequence[Sample]],
    values: Mapping[str, Sequence[float]],
) -> Scored | None:
    """The per-item scores behind a headline metric, where it is a plain mean of one score over one set.

    Args:
        headline: such as forget_probability: score "probability" over set "forget".
        before, after, attacked: samples; of the attack those judged, by seed.
        values: the metric as the benchmark says it: "before" and "after" over the same items as each seed, and
            "attacked", by seed. Means that don't agree with it are not what it is made of: then None.
    """
    prefix, _, score = headline.metric.partition("_")
    old, new = ({s.id: s for s in samples if s.set == prefix and score in s.scores} for samples in (before, after))
    found = [{s.id: s for s in seed if s.set == prefix and score in s.scores} for seed in attacked]
    ids = [one for one in old if one in new and any(one in seed for seed in found)]
    if not ids:
        return None
    table = np.array([[seed[one].scores[score] if one in seed else np.nan for one in ids] for seed in found])
    first = np.array([old[one].scores[score] for one in ids])
    second = np.array([new[one].scores[score] for one in ids])
    for place, row in enumerate(table):
        judged = ~np.isnan(row)
        if judged.sum() != len(found[place]):
            return None
        for name, scores in (("before", first), ("after", second), ("attacked", row)):
            if abs(scores[judged].mean() - values[name][place]) > 1e-6:
                return None
    return Scored([old[one].group for one in ids], first, second, table, headline.floor)


def interval_of_metrics(
    headlines: Sequence[Headline], before: Metrics, after: Metrics, attacked: Metrics
) -> tuple[float, float]:
    """For headlines that are no plain means: `kept` at the two ends of the attacked metrics' own intervals, before and
    after taken as they are. Narrower than it should be, and said so in the documentation."""
    ends = []
    for end in (1, 0):
        ends.append(
            min(
                kept_share(before[h.metric].value, after[h.metric].value, attacked[h.metric].ci95[end], floor=h.floor)
                for h in headlines
            )
        )
    return min(ends), max(ends)


def utility_names(benchmark: Benchmark, metrics: Metrics) -> list[str]:
    """The metrics that say what a model is still good for: a benchmark's own utility, the retain set's counterparts
    of its headlines, and general perplexity."""
    wanted = [h.metric.replace("forget_", "retain_", 1) for h in benchmark.headlines]
    own = [name for name in metrics if "utility" in name]
    return [name for name in dict.fromkeys([*own, *wanted, "general_perplexity"]) if name in metrics]


def utility_loss(benchmark: Benchmark, before: Metrics, now: Metrics) -> float | None:
    """The largest relative loss over the utility metrics, at least 0: (b − a)/b, and of perplexity (a − b)/b. None
    where none was measured."""
    losses = []
    for name in utility_names(benchmark, before):
        if name not in now or before[name].value <= 0:
            continue
        change = (now[name].value - before[name].value) / before[name].value
        losses.append(change if "perplexity" in name else -change)
    return max(0.0, *losses) if losses else None
