"""Judge what an attack left of the forgetting, against the same rows before and after unlearning: pure functions of
recorded samples. No model runs, no file is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from letgo.attacks.engine.base import RETRAINED, Judged
from letgo.benchmarks.engine.base import Sample
from letgo.core.errors import EmptyScoreError, UserError
from letgo.metrics.records import Headline
from letgo.metrics.robustness import (
    LEAST_FORGETTING,
    collapse_reasons,
    headline_scores,
    kept_interval,
    kept_interval_of_metrics,
    shared_headlines,
    smallest_share,
    utility_loss,
)
from letgo.runs.results import SAMPLES_FILE, Metrics


@dataclass(frozen=True)
class Recorded:
    """What an attack is judged against: the run as it was scored without one.

    Attributes:
        before, after: the metrics before and after unlearning.
        samples: by stage: "before", "after", "reference:NAME"; a stage may have none.
        headlines: the metrics by which forgetting is judged.
        summarise: the metrics of samples, by the benchmark's rules.
        broken: whether the run itself collapsed: it can then survive nothing.
    """

    before: Metrics
    after: Metrics
    samples: Mapping[str, Sequence[Sample]]
    headlines: Sequence[Headline]
    summarise: Callable[[Iterable[Sample]], Metrics]
    broken: bool = False

    def stage(self, name: str) -> Sequence[Sample]:
        return self.samples.get(name, ())


def judge_samples(
    recorded: Recorded, samples: Sequence[Sample], seen: frozenset[str], label: str, *, weights_changed: bool = True
) -> Judged:
    """Judge an attacked model's samples, without the forget rows of groups that the attacker trained on (`seen`), if
    any others remain, and without rows that were not scored before and after unlearning. `label` is the attack's, for
    errors; an attack that asks the same model in another way has not changed the weights."""
    forget = {sample.group for sample in samples if sample.set == "forget"}
    seen = seen & forget
    everything = bool(seen) and seen == forget
    held = forget - seen if not everything else forget
    judged = [s for s in samples if s.set != "forget" or s.group in held]
    judged, baseline, whole = _on_the_same_rows(
        recorded, judged, all_groups=held == forget, whole_allowed=weights_changed
    )
    if not _ids(judged):
        raise EmptyScoreError(f"attack {label}: no sample of the forget set is left to be judged")
    metrics = recorded.summarise(judged)
    if not weights_changed:
        # The weights are the same: so is what was not asked otherwise.
        metrics = baseline["after"] | {k: v for k, v in metrics.items() if k.startswith("forget_")}
    if seen and not everything:
        trained_on = recorded.summarise([s for s in samples if s.set == "forget" and s.group in seen])
        metrics |= {f"seen_{k.removeprefix('forget_')}": m for k, m in trained_on.items() if k.startswith("forget_")}
    kept = smallest_share(recorded.headlines, baseline["before"], baseline["after"], metrics)
    if kept is None:
        problem = "no headline metric was scored before, after and now"
        if held != forget:
            problem = "no question about the groups held out was scored; score more items, or hold out more"
        raise EmptyScoreError(f"attack {label}: {problem}")
    return Judged(
        metrics,
        baseline,
        part=not whole,
        kept=kept,
        reasons=collapse_reasons(baseline["before"], metrics) if weights_changed else [],
        loss=utility_loss(recorded.headlines, baseline["after"], metrics) if weights_changed else 0.0,
        samples=samples,
        judged=judged,
        seen=seen,
        everything_seen=everything,
    )


def _on_the_same_rows(
    recorded: Recorded, judged: list[Sample], *, all_groups: bool, whole_allowed: bool
) -> tuple[list[Sample], dict[str, Metrics], bool]:
    """The samples whose forget rows were scored before and after too; the metrics before and after over those rows; and
    whether those are all rows."""
    stages = {stage: recorded.stage(stage) for stage in ("before", "after")}
    whole = all_groups and _ids(judged) == _ids(stages["after"])
    unrecorded = not any(stages.values())
    if unrecorded and not (all_groups and whole_allowed):
        raise UserError(f"the run's {SAMPLES_FILE} has no samples of before and after: a part can't be judged")
    if whole or unrecorded:
        return judged, {"before": dict(recorded.before), "after": dict(recorded.after)}, whole
    common = _ids(stages["before"]) & _ids(stages["after"])
    judged = [s for s in judged if s.set != "forget" or s.id in common]
    wanted = _ids(judged)
    baseline = {
        stage: recorded.summarise([s for s in rows if s.set != "forget" or s.id in wanted])
        for stage, rows in stages.items()
    }
    return judged, baseline, whole


def judge_ways(
    recorded: Recorded, ways: Sequence[tuple[str, Sequence[Sample]]], seen: frozenset[str], label: str
) -> Judged:
    """Of several ways to ask the same model, the one that brings most back."""
    judged, shown = [], []
    for way, samples in ways:
        judged.append(judge_samples(recorded, samples, seen, label, weights_changed=False))
        values = {name: m.value for name, m in judged[-1].metrics.items() if name.startswith("forget_")}
        shown.append({"way": way, "kept": judged[-1].kept} | values)
    return replace(min(judged, key=lambda outcome: outcome.kept), ways=shown)


def judge_measured(recorded: Recorded, measured: Judged) -> Judged:
    """Take over what an attack has judged by itself. The weights are the same: what it did not measure still holds."""
    metrics = {k: v for k, v in recorded.after.items() if not k.startswith("forget_")} | measured.metrics
    return replace(measured, metrics=metrics)


def interval_of(recorded: Recorded, seeds: Sequence[Judged]) -> tuple[float, float]:
    """95 % interval of the mean share kept, over groups and seeds; wider bounds where a headline is no plain mean."""
    first = seeds[0]
    if first.ci95 is not None:
        known = [seed.ci95 or (seed.kept, seed.kept) for seed in seeds]
        return min(low for low, _ in known), max(high for _, high in known)
    heads = shared_headlines(recorded.headlines, first.baseline["before"], first.baseline["after"], first.metrics)
    scored = []
    for head in heads:
        values = {
            "before": [seed.baseline["before"][head.metric].value for seed in seeds],
            "after": [seed.baseline["after"][head.metric].value for seed in seeds],
            "attacked": [seed.metrics[head.metric].value for seed in seeds],
        }
        judged = [seed.judged for seed in seeds]
        scored.append(headline_scores(head, recorded.stage("before"), recorded.stage("after"), judged, values))
    plain_means = [head for head in scored if head is not None]
    if len(plain_means) == len(heads):
        return kept_interval(plain_means)
    ends = [
        kept_interval_of_metrics(heads, seed.baseline["before"], seed.baseline["after"], seed.metrics) for seed in seeds
    ]
    return sum(low for low, _ in ends) / len(ends), sum(high for _, high in ends) / len(ends)


def relearning_score(
    recorded: Recorded, samples: Sequence[Sample], reference: Sequence[Sample], seen: frozenset[str]
) -> float:
    """R = min(Δ_retrained / Δ_unlearned, 1): what the retrained model gains under the attack over what the unlearned
    one gains, on the rows that the attacker trained on; the smallest over the headlines.

    A gain of less than a tenth of what was known before counts as none, and R is then 1. `samples` are the attacked
    unlearned model's, `reference` the retrained one's under the same attack and seed.
    """

    def over_seen(rows: Sequence[Sample]) -> Metrics:
        return recorded.summarise([s for s in rows if s.set == "forget" and s.group in seen])

    attacked, known = over_seen(samples), over_seen(recorded.stage("before"))
    after, other = over_seen(recorded.stage("after")), over_seen(recorded.stage(f"reference:{RETRAINED}"))
    other_attacked = over_seen(reference)
    scores = []
    for h in shared_headlines(recorded.headlines, attacked, known, after, other, other_attacked):
        gain = attacked[h.metric].value - after[h.metric].value
        theirs = other_attacked[h.metric].value - other[h.metric].value
        least = LEAST_FORGETTING * max(known[h.metric].value - h.floor, 0.0)
        scores.append(1.0 if gain <= least else min(max(theirs / gain, 0.0), 1.0))
    if not scores:
        raise EmptyScoreError("R: no headline metric of the rows that the attacker trained on")
    return min(scores)


def _ids(samples: Sequence[Sample]) -> set[str]:
    return {sample.id for sample in samples if sample.set == "forget"}
