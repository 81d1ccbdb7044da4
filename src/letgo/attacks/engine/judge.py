"""Judging: what an attack left of the forgetting, held against the same rows before and after unlearning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from letgo.attacks.engine.base import Attacked
from letgo.attacks.engine.target import RETRAINED, Subject
from letgo.benchmarks.engine.base import Sample
from letgo.core.errors import EmptyScoreError, UserError
from letgo.metrics.robustness import (
    LEAST_FORGETTING,
    Headline,
    collapse_reasons,
    headline_scores,
    kept_interval_of_metrics,
    kept_share,
    shared_headlines,
    utility_loss,
)
from letgo.metrics.robustness import kept_interval as interval_of_scores
from letgo.runs.results import SAMPLES_FILE, Metrics


@dataclass
class Judged:
    """One seed's outcome.

    Attributes:
        metrics: after the attack; the forget set's over the rows judged, those trained on as `seen_*`.
        baseline: "before" and "after" unlearning over the same rows.
        part: whether a part of the rows is judged (groups held out, items that could be asked).
        kept: the smallest share of the forgetting kept over the headlines.
        reasons: why the attack broke the model; empty where it did not.
        loss: of utility, by the attack.
        samples: all that were scored; `judged` those that count.
        ways: of an attack by prompts, each way of asking and what it left.
        seen: groups that the attacker trained on, of those scored.
        gain: R of this seed, against the retrained model under the same attack; None where it was not attacked.
    """

    metrics: Metrics
    baseline: dict[str, Metrics]
    part: bool
    kept: float
    reasons: list[str]
    loss: float | None
    samples: Sequence[Sample] = ()
    judged: Sequence[Sample] = ()
    seen: frozenset[str] = frozenset()
    everything_seen: bool = False
    ways: list[dict[str, Any]] = field(default_factory=list)
    ci95: tuple[float, float] | None = None
    gain: float | None = None


def judge(subject: Subject, attacked: Attacked, label: str, name: str) -> Judged:
    """Score what an attack left and judge it; of several ways of asking, the one that brings most back."""
    if attacked.measured is not None:
        return _measured(subject, attacked)
    tokenizer = subject.victim().tokenizer()
    if not attacked.asked:
        samples = subject.samples(attacked.model, tokenizer, f"measuring after {name}")
        return judge_samples(subject, samples, attacked.seen, label)
    ways = []
    for asked in attacked.asked:
        samples = subject.samples(attacked.model, tokenizer, f"asking: {asked.name}", asked.benchmark)
        ways.append((asked.name, judge_samples(subject, samples, attacked.seen, label, weights_changed=False)))
    strongest = min((one for _, one in ways), key=lambda one: one.kept)
    strongest.ways = [{"way": way, "kept": one.kept} | _values(one.metrics, "forget_") for way, one in ways]
    return strongest


def judge_samples(
    subject: Subject,
    samples: Sequence[Sample],
    seen: frozenset[str],
    label: str,
    *,
    weights_changed: bool = True,
) -> Judged:
    """Judge samples. Forget rows of groups that the attacker trained on are left out, where any others remain; so are
    rows that were not scored before and after unlearning."""
    forget = {sample.group for sample in samples if sample.set == "forget"}
    seen = seen & forget
    everything = bool(seen) and seen == forget
    held = forget - seen if not everything else forget
    judged = [s for s in samples if s.set != "forget" or s.group in held]
    recorded = {stage: subject.stage(stage) for stage in ("before", "after")}
    whole = held == forget and _ids(judged) == _ids(recorded["after"])
    unrecorded = not any(recorded.values())
    if unrecorded and (held != forget or not weights_changed):
        raise UserError(f"the run's {SAMPLES_FILE} has no samples of before and after: a part can't be judged")
    if whole or unrecorded:
        baseline = {"before": dict(subject.result.before), "after": dict(subject.result.after)}
    else:
        common = _ids(recorded["before"]) & _ids(recorded["after"])
        judged = [s for s in judged if s.set != "forget" or s.id in common]
        wanted = _ids(judged)
        baseline = {
            stage: subject.benchmark.summarise([s for s in rows if s.set != "forget" or s.id in wanted])
            for stage, rows in recorded.items()
        }
    if not _ids(judged):
        raise EmptyScoreError(f"attack {label}: no sample of the forget set is left to be judged")
    metrics = subject.benchmark.summarise(judged)
    if not weights_changed:
        # The same weights: what is not asked otherwise is as it was.
        metrics = baseline["after"] | {k: v for k, v in metrics.items() if k.startswith("forget_")}
    if seen and not everything:
        metrics |= _of_seen(subject, [s for s in samples if s.set == "forget" and s.group in seen])
    shares = [
        kept_share(
            baseline["before"][h.metric].value,
            baseline["after"][h.metric].value,
            metrics[h.metric].value,
            floor=h.floor,
        )
        for h in headlines(subject, baseline["before"], baseline["after"], metrics)
    ]
    if not shares and held != forget:
        raise EmptyScoreError(
            f"attack {label}: no question about the groups held out was scored; score more items, or hold out more"
        )
    if not shares:
        raise EmptyScoreError(f"attack {label}: no headline metric was scored before, after and now")
    return Judged(
        metrics,
        baseline,
        part=not whole,
        kept=min(shares),
        reasons=collapse_reasons(baseline["before"], metrics) if weights_changed else [],
        loss=utility_loss(subject.benchmark.headlines, baseline["after"], metrics) if weights_changed else 0.0,
        samples=samples,
        judged=judged,
        seen=seen,
        everything_seen=everything,
    )


def headlines(subject: Subject, *measured: Mapping[str, object]) -> list[Headline]:
    """The benchmark's headlines that all of these metrics have."""
    return shared_headlines(subject.benchmark.headlines, *measured)


def kept_interval(subject: Subject, seeds: Sequence[Judged]) -> tuple[float, float]:
    """95 % interval of the mean share kept, over groups and seeds; wider bounds where a headline is no plain mean."""
    first = seeds[0]
    if first.ci95 is not None:
        known = [one.ci95 or (one.kept, one.kept) for one in seeds]
        return min(low for low, _ in known), max(high for _, high in known)
    heads = headlines(subject, first.baseline["before"], first.baseline["after"], first.metrics)
    before, after = subject.stage("before"), subject.stage("after")
    found = []
    for head in heads:
        values = {
            "before": [one.baseline["before"][head.metric].value for one in seeds],
            "after": [one.baseline["after"][head.metric].value for one in seeds],
            "attacked": [one.metrics[head.metric].value for one in seeds],
        }
        found.append(headline_scores(head, before, after, [one.judged for one in seeds], values))
    known_heads = [one for one in found if one is not None]
    if len(known_heads) == len(heads):
        return interval_of_scores(known_heads)
    ends = [
        kept_interval_of_metrics(heads, one.baseline["before"], one.baseline["after"], one.metrics) for one in seeds
    ]
    return sum(low for low, _ in ends) / len(ends), sum(high for _, high in ends) / len(ends)


def relearning_score(
    subject: Subject, samples: Sequence[Sample], reference: Sequence[Sample], seen: frozenset[str]
) -> float:
    """R = min(Δ_retrained / Δ_unlearned, 1): what the retrained model gains under the attack over what the unlearned
    one gains, on the rows that the attacker trained on; the smallest over the headlines.

    A gain of less than a tenth of what was known before counts as none, and R is then 1.

    Args:
        samples: of the attacked unlearned model.
        reference: of the retrained model, attacked alike with the same seed.
        seen: groups that the attacker trained on.
    """

    def over_seen(rows: Sequence[Sample]) -> Metrics:
        return subject.benchmark.summarise([s for s in rows if s.set == "forget" and s.group in seen])

    attacked, known = over_seen(samples), over_seen(subject.stage("before"))
    after, other = over_seen(subject.stage("after")), over_seen(subject.stage(f"reference:{RETRAINED}"))
    other_attacked = over_seen(reference)
    scores = []
    for h in headlines(subject, attacked, known, after, other, other_attacked):
        gain = attacked[h.metric].value - after[h.metric].value
        theirs = other_attacked[h.metric].value - other[h.metric].value
        least = LEAST_FORGETTING * max(known[h.metric].value - h.floor, 0.0)
        scores.append(1.0 if gain <= least else min(max(theirs / gain, 0.0), 1.0))
    if not scores:
        raise EmptyScoreError("R: no headline metric of the rows that the attacker trained on")
    return min(scores)


def pooled(measured: Sequence[Metrics]) -> Metrics:
    """The metrics over all seeds: the mean, n of all, the interval from the lowest to the highest end."""
    if len(measured) == 1:
        return measured[0]
    metrics: Metrics = {}
    for name in measured[0]:
        ones = [one[name] for one in measured if name in one]
        low, high = min(one.ci95[0] for one in ones), max(one.ci95[1] for one in ones)
        value = sum(one.value for one in ones) / len(ones)
        metrics[name] = ones[0].model_copy(update={"value": value, "n": sum(o.n for o in ones), "ci95": (low, high)})
    return metrics


def _measured(subject: Subject, attacked: Attacked) -> Judged:
    found = attacked.measured
    assert found is not None  # the only caller has looked
    # The weights are as they were: what the attack did not measure itself still holds.
    metrics = {k: v for k, v in subject.result.after.items() if not k.startswith("forget_")} | found.metrics
    baseline = {stage: dict(values) for stage, values in found.baseline.items()}
    return Judged(
        metrics,
        baseline,
        part=True,
        kept=found.kept,
        reasons=[],
        loss=0.0,
        samples=found.samples,
        judged=found.samples,
        ci95=found.kept_ci95,
    )


def _of_seen(subject: Subject, trained: Sequence[Sample]) -> Metrics:
    more = subject.benchmark.summarise(trained) if trained else {}
    return {name.replace("forget_", "seen_", 1): m for name, m in more.items() if name.startswith("forget_")}


def _ids(samples: Sequence[Sample]) -> set[str]:
    return {sample.id for sample in samples if sample.set == "forget"}


def _values(metrics: Metrics, prefix: str) -> dict[str, float]:
    return {name: metric.value for name, metric in metrics.items() if name.startswith(prefix)}
