"""Judge what an attack left of the forgetting: the attacked unlearned model between the attacked original and the
attacked retrained model, or the floor (`letgo.metrics.judgement`). Pure functions of recorded samples: no model runs,
no file is read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from letgo.attacks.engine.base import Judged
from letgo.benchmarks.engine.base import RETRAINED, Sample
from letgo.benchmarks.engine.questions import means
from letgo.core.errors import EmptyScoreError, UserError
from letgo.metrics.judgement import FORGOTTEN_SETS, Placed, place, plain_share, revealed, smallest
from letgo.metrics.records import Headline
from letgo.metrics.robustness import (
    LEAST_FORGETTING,
    collapse_reasons,
    shared_headlines,
    smallest_share,
    utility_loss,
)
from letgo.runs.results import SAMPLES_FILE, Metrics, Share, hardest_first

Curve = Sequence[Mapping[str, float]]
Ways = Mapping[str, Sequence[Sample]]
"""An attacked model's samples by the way in which it was asked; under "" where there is one way."""


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

    @property
    def without_original(self) -> bool:
        """Whether the model before unlearning is not known: then there are levels and no shares."""
        return not self.before

    def stage(self, name: str) -> Sequence[Sample]:
        return self.samples.get(name, ())


@dataclass(frozen=True)
class Answered:
    """What an attacked model answered, and the looks at it on the way."""

    ways: Ways
    curve: Curve = ()


@dataclass(frozen=True)
class Ends:
    """The two ends of the scale: the original, and the retrained model where there is one, under the same attack."""

    original: Answered
    retrained: Answered = field(default_factory=lambda: Answered({}))


def judge_samples(
    recorded: Recorded,
    samples: Sequence[Sample],
    ends: Ends,
    seen: frozenset[str],
    label: str,
    *,
    way: str = "",
    weights_changed: bool = True,
    plain: Metrics | None = None,
) -> Judged:
    """Judge an attacked model's samples, without the forget rows of groups that the attacker trained on (`seen`), if
    any others remain, and without rows that were not scored before and after unlearning. `label` is the attack's, for
    errors; an attack that asks the same model in another `way` has not changed the weights. If the links of a chain
    before it have, `plain` are the metrics of what they left, asked plainly."""
    forget = {sample.group for sample in samples if sample.set == "forget"}
    given, seen = seen, seen & forget
    everything = bool(seen) and seen == forget
    held = forget - seen if not everything else forget
    judged = [s for s in samples if s.set not in FORGOTTEN_SETS or s.group in held]
    judged, baseline, whole = _on_the_same_rows(
        recorded, judged, all_groups=held == forget, whole_allowed=weights_changed
    )
    if not _ids(judged):
        raise EmptyScoreError(f"attack {label}: no sample of the forget set is left to be judged")
    metrics = recorded.summarise(judged)
    if not weights_changed:
        # The weights are the same: so is what was not asked otherwise.
        unasked = baseline["after"] if plain is None else plain
        metrics = unasked | {k: v for k, v in metrics.items() if k.startswith("forget_")}
    if seen and not everything:
        trained_on = recorded.summarise([s for s in samples if s.set == "forget" and s.group in seen])
        metrics |= {f"seen_{k.removeprefix('forget_')}": m for k, m in trained_on.items() if k.startswith("forget_")}
    placed = _placed(recorded.headlines, judged, ends, way, given, everything=everything)
    if not placed and not recorded.without_original:
        problem = "no headline metric was scored before, after and now"
        if held != forget:
            problem = "no question about the groups held out was scored; score more items, or hold out more"
        raise EmptyScoreError(f"attack {label}: {problem}")
    shares = [one.share() for one in placed]
    retrained = ends.retrained.ways.get(way, ())
    changed = weights_changed or plain is not None
    return Judged(
        metrics,
        baseline,
        part=not whole,
        kept=kept_of(shares),
        placed=placed,
        shares=shares,
        left=smallest_share(recorded.headlines, baseline["before"], baseline["after"], metrics) or 0.0,
        revealed=revealed(judged, retrained, seen),
        reasons=collapse_reasons(baseline["before"] or baseline["after"], metrics) if changed else [],
        loss=utility_loss(recorded.headlines, baseline["after"], metrics) if changed else 0.0,
        samples=samples,
        seen=seen,
        everything_seen=everything,
    )


def kept_of(shares: Sequence[Share]) -> float | None:
    """K, clipped to 0…1: the smallest over the headlines; None where nobody can tell."""
    least = smallest(shares)
    return None if least is None else min(max(least, 0.0), 1.0)


def _placed(
    headlines: Sequence[Headline],
    judged: Sequence[Sample],
    ends: Ends,
    way: str,
    given: frozenset[str],
    *,
    everything: bool = False,
) -> list[Placed]:
    """The judged rows between both ends. Controls are treated as the rows are: those that the attacker trained on are
    the floor of rows trained on, the others of rows held out."""
    original = ends.original.ways.get(way, ())
    controls = [s for s in original if s.set == "control"]
    alike = [s for s in controls if (s.group in given) == everything] or controls
    retrained = ends.retrained.ways.get(way, ())
    placed = [place(h, original, judged, retrained=retrained, controls=alike) for h in headlines]
    return [one for one in placed if one is not None]


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
    common = _ids(stages["after"])
    if not recorded.without_original:
        common &= _ids(stages["before"])
    judged = [s for s in judged if s.set != "forget" or s.id in common]
    wanted = _ids(judged)
    groups = {sample.group for sample in judged if sample.set == "forget"}
    baseline: dict[str, Metrics] = {"before": {}}
    for stage, rows in stages.items():
        if stage != "before" or not recorded.without_original:
            baseline[stage] = recorded.summarise([s for s in rows if _wanted(s, wanted, groups)])
    return judged, baseline, whole


def judge_ways(
    recorded: Recorded, ways: Ways, ends: Ends, seen: frozenset[str], label: str, plain: Metrics | None = None
) -> Judged:
    """Of several ways to ask the same model, the one that brings most back; of those in which nobody can tell, none.
    `plain` as in `judge_samples`."""
    judged, shown = [], []
    for way, samples in ways.items():
        judged.append(judge_samples(recorded, samples, ends, seen, label, way=way, weights_changed=False, plain=plain))
        values = {name: m.value for name, m in judged[-1].metrics.items() if name.startswith("forget_")}
        shown.append({"way": way, "kept": judged[-1].kept, **values})
    # Where nobody can tell what was kept, the way that shows most of the forget set counts.
    strongest = min(judged, key=lambda outcome: (hardest_first(outcome.kept), -_level(recorded.headlines, outcome)))
    names = sorted({name for outcome in judged for name in outcome.revealed})
    return replace(strongest, ways=shown, revealed=names)


def _level(headlines: Sequence[Headline], judged: Judged) -> float:
    return sum(judged.metrics[h.metric].value for h in headlines if h.metric in judged.metrics)


def judge_scored(
    recorded: Recorded,
    samples: Sequence[Sample],
    ends: Ends,
    headlines: Sequence[Headline],
    plain: Metrics | None = None,
) -> Judged:
    """Judge an attack that scores the models in its own way; `plain` as in `judge_samples`."""
    placed = _placed(headlines, samples, ends, "", frozenset())
    shares = [one.share() for one in placed]
    forget = [sample for sample in samples if sample.set == "forget"]
    names = list(dict.fromkeys(name for sample in forget for name in sample.scores))
    metrics = means(forget, "forget", names)
    kept = kept_of(shares)
    judged = Judged(
        metrics,
        {},
        part=False,
        kept=kept,
        placed=placed,
        shares=shares,
        left=kept or 0.0,
        revealed=revealed(samples, ends.retrained.ways.get("", ())),
        samples=samples,
    )
    return judge_measured(recorded, judged, plain)


def judge_measured(recorded: Recorded, measured: Judged, plain: Metrics | None = None) -> Judged:
    """Take over what an attack has judged by itself. If the weights are the same, what it did not measure still holds;
    if not, it is as `plain` has it (`judge_samples`)."""
    unasked = recorded.after if plain is None else plain
    metrics = {k: v for k, v in unasked.items() if not k.startswith("forget_")} | measured.metrics
    judged = replace(measured, metrics=metrics)
    if plain is None:
        return judged
    reasons = collapse_reasons(recorded.before or recorded.after, metrics)
    return replace(judged, reasons=reasons, loss=utility_loss(recorded.headlines, recorded.after, metrics))


def judge_curve(headlines: Sequence[Headline], curve: Curve, ends: Ends) -> list[dict[str, float]]:
    """The attack's course with K at each look: the three models' curves point by point, over the looks' few items. A
    look at which the original no longer knows has no K."""
    original, retrained = (_by_step(answered.curve) for answered in (ends.original, ends.retrained))
    rows = []
    for point in curve:
        row, step = dict(point), point.get("step")
        top, bottom = original.get(step, {}), retrained.get(step, {})
        floors = {}
        for h in (h for h in headlines if h.metric in point and h.metric in top):
            floors[h.metric] = bottom.get(h.metric, top.get(h.metric.replace("forget_", "control_", 1), h.floor))
            row |= {f"original_{h.metric}": top[h.metric], f"never_{h.metric}": floors[h.metric]}
        share = plain_share(headlines, top, point, floors, least=LEAST_FORGETTING)
        if share is not None:
            row["kept"] = min(max(share, 0.0), 1.0)
        rows.append(row)
    return rows


def _by_step(curve: Curve) -> dict[Any, Mapping[str, float]]:
    return {point.get("step"): point for point in curve}


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


def _wanted(sample: Sample, ids: Collection[str], groups: Collection[str]) -> bool:
    """Whether a row is judged: of the forget set those of these ids; of the same rows' trained wordings, of these
    groups; and all that are to be kept."""
    return sample.id in ids if sample.set == "forget" else sample.set != "trained" or sample.group in groups


def _ids(samples: Sequence[Sample]) -> set[str]:
    return {sample.id for sample in samples if sample.set == "forget"}
