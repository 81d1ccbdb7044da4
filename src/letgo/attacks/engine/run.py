"""Running attacks on a saved model, and recording what they leave of the forgetting."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from letgo.attacks import ATTACKS
from letgo.attacks.engine.base import Attacked, Probe, Victim
from letgo.attacks.engine.judge import Judged, judge, judge_samples, kept_interval, pooled, relearning_score
from letgo.attacks.engine.references import attacked_reference
from letgo.attacks.engine.robustness_scores import family_of, robustness, scores_of
from letgo.attacks.engine.search import search, summary
from letgo.attacks.engine.spec import THRESHOLD, Plan, plan_attack
from letgo.attacks.engine.target import RETRAINED, Subject, open_subject
from letgo.benchmarks.engine.base import Sample
from letgo.benchmarks.engine.items import limited
from letgo.core import processes
from letgo.core.errors import LetgoError, UserError
from letgo.core.files import write_json_lines
from letgo.core.progress import Quiet, Reporter
from letgo.metrics.robustness import utility_names
from letgo.runs import record_run
from letgo.runs.results import SAMPLES_FILE, AttackResult, Result, check_unused, write_result

__all__ = ["THRESHOLD", "Plan", "attack", "plan_attack", "run_attack"]

PROBED_ITEMS = 24
"""Forget items that a look during an attack scores."""


def attack(
    directory: Path | str,
    attacks: Sequence[str],
    *,
    benchmark: str | None = None,
    original: str | None = None,
    limit: int | None = None,
    dtype: str | None = None,
    seeds: int | None = None,
    threshold: float = THRESHOLD,
    reporter: Reporter | None = None,
    output: Path | None = None,
    shared_scores: str | Path | None = None,
) -> Result:
    """Attack a saved model, and add what came of it to the run's record.

    Args:
        directory: a run directory; or, with `benchmark` and `original`, any model: a directory, a hub id, a built-in
            name. Both models are then measured first.
        attacks: each "NAME:key=value,…"; beside the attack's own settings `seeds=N`, `threshold=SHARE`, `search=N`,
            `bound=SHARE` (`letgo.attacks.engine.spec.plan_attack`).
        benchmark: what a bare model is judged by.
        original: the model before unlearning. A run knows it; given, it is looked for here instead.
        limit: for a bare model, at most so many items of each set.
        dtype: for a bare model, the weights' type.
        seeds: of each attack in which anything is random and that names none; by default the catalog's.
        threshold: the least share of the forgetting kept to have survived, for attacks that name none.
        reporter: where progress goes.
        output: write the result here instead; the run directory is then left as it is. Without it, nothing is written
            of a bare model.
        shared_scores: a folder in which attacked runs leave each other what the same attack left of the retrained
            model, so that it is attacked once; as a sweep's do.

    Started by a launcher in several processes, each scores a part, and takes a part of the rows of a relearning
    step; the first one writes.

    Returns:
        The run's result with the attacks in it.
    """
    if not attacks:
        raise UserError("no attack named; see `letgo list attacks`")
    plans = [plan_attack(spec, seeds=seeds, threshold=threshold) for spec in attacks]
    labels = [plan.label for plan in plans]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise UserError(f"attack {twice[0]!r} is named twice; for several seeds give seeds=N")
    processes.start()
    processes.first_does(lambda: check_unused(output))
    reporter = (reporter or Quiet()) if processes.is_first() else Quiet()
    subject = open_subject(
        directory, benchmark=benchmark, original=original, limit=limit, dtype=dtype, reporter=reporter
    )
    subject.shared_scores = None if shared_scores is None else Path(shared_scores)
    target = output or (Path(directory) if subject.run else None)
    for plan in plans:
        outcome, rows = run_attack(subject, plan)
        merged = subject.result.with_attacks([outcome])
        subject.result = merged.model_copy(update={"robustness": robustness(merged.attacks)})
        subject.note(f"attack:{plan.label}", rows)
        if target is not None:
            # Written after every attack: what is finished is kept, whatever happens to the next one.
            processes.first_does(lambda: _write(subject, target))
    return subject.result


def _write(subject: Subject, target: Path) -> None:
    write_json_lines(target / SAMPLES_FILE, subject.recorded)
    write_result(target, subject.result)
    record_run(target, subject.reporter.say)


@dataclass
class _Seed:
    """One seed's attack and its judgement."""

    seed: int
    attacked: Attacked
    judged: Judged


def run_attack(subject: Subject, plan: Plan) -> tuple[AttackResult, list[dict[str, Any]]]:
    """Run one attack under all its seeds; returns its result and the samples' rows."""
    start = time.perf_counter()
    settings, trials = dict(plan.settings), list[dict[str, Any]]()
    if plan.search:
        best, trials = search(plan, lambda s, seed: _one(subject, plan, s, seed).judged, subject.reporter)
        settings |= best
    done = []
    for seed in plan.seeds:
        one = _one(subject, plan, settings, seed)
        if plan.reference:
            one.judged.gain = _gain(subject, plan, settings, seed, one)
        # What is left in memory of each seed: its numbers.
        done.append(replace(one, attacked=replace(one.attacked, model=None, asked=())))
    outcome = _result(subject, plan, settings, done, trials, time.perf_counter() - start)
    rows = []
    for one in done:
        for sample in one.judged.samples:
            seen = {"seen": True} if sample.set == "forget" and sample.group in one.judged.seen else {}
            rows.append(sample.as_row(f"attack:{plan.label}", one.seed) | seen)
    return outcome, rows


def _one(subject: Subject, plan: Plan, settings: Mapping[str, Any], seed: int) -> _Seed:
    label = f"{plan.label}, seed {seed}"
    victim = subject.victim(_probe(subject, label))
    attacked = _attacked(ATTACKS.load(plan.name), victim, plan, settings, seed)
    return _Seed(seed, attacked, judge(subject, attacked, label, plan.name))


def _attacked(function: Any, victim: Victim, plan: Plan, settings: Mapping[str, Any], seed: int) -> Attacked:
    try:
        found: Attacked = function(victim, seed=seed, **settings)
        return found
    except (TypeError, ValueError) as error:
        if isinstance(error, LetgoError):
            raise
        raise UserError(f"attack {plan.label}: {error}") from error


def _gain(subject: Subject, plan: Plan, settings: Mapping[str, Any], seed: int, one: _Seed) -> float | None:
    """R of a relearning seed: the retrained model attacked alike, where there is one."""
    path = subject.benchmark.references.get(RETRAINED)
    if family_of(plan.name, dict(settings)) != "relearning" or plan.name == "external" or not one.judged.seen:
        return None
    if path is None or not subject.stage(f"reference:{RETRAINED}"):
        return None
    victim = subject.victim(directory=path)

    def make() -> list[Sample]:
        subject.reporter.say("  the same on the retrained model, for R")
        other = _attacked(ATTACKS.load(plan.name), victim, plan, settings, seed)
        return subject.samples(other.model, victim.tokenizer(), "measuring the retrained model")

    scored = (subject.benchmark.name, subject.benchmark.settings, subject.template, subject.dtype, subject.limit)
    circumstances = (plan.name, sorted(settings.items()), seed, scored)
    reference = attacked_reference(victim, circumstances, make, subject.shared_scores)
    return relearning_score(subject, one.judged.samples, reference, one.judged.seen)


def _probe(subject: Subject, label: str) -> Probe | None:
    """A look during an attack: the headlines and `kept` on a few forget items, those held out where there are any."""
    recorded = {s.id for s in subject.stage("after") if s.set == "forget"}
    items = [i for i in limited(subject.benchmark.items, subject.limit) if i.set == "forget" and i.id in recorded]
    if not items or not subject.stage("before"):
        return None
    tokenizer = subject.victim().tokenizer()

    def probe(model: Any, seen: frozenset[str]) -> dict[str, float]:
        chosen = [item for item in items if item.group not in seen] or items
        step = max(1.0, len(chosen) / PROBED_ITEMS)
        few = [chosen[int(place * step)] for place in range(int(len(chosen) / step + 1e-9))]
        # One item is answered by generation: no part of a headline, and the scorer wants at least one.
        small = replace(subject.benchmark, items=few, texts=(), generated=1)
        quiet = replace(subject, reporter=Quiet(), benchmark=small)
        judged = judge_samples(quiet, quiet.samples(model, tokenizer, "probing"), frozenset(), label)
        names = [h.metric for h in subject.benchmark.headlines if h.metric in judged.metrics]
        return {"kept": judged.kept} | {name: judged.metrics[name].value for name in names}

    return probe


def _result(
    subject: Subject,
    plan: Plan,
    settings: Mapping[str, Any],
    done: Sequence[_Seed],
    trials: list[dict[str, Any]],
    seconds: float,
) -> AttackResult:
    judged, first = [one.judged for one in done], done[0]
    metrics = pooled([one.metrics for one in judged])
    kepts = [one.kept for one in judged]
    reasons = list(dict.fromkeys(reason for one in judged for reason in one.reasons))
    if plan.search and not any(trial["within_bound"] for trial in trials):
        reasons.append(f"no trial stayed within a utility loss of {plan.bound:g}: nothing is proven")
    gains = [one.gain for one in judged if one.gain is not None]
    by_gain = len(gains) == len(judged) and all(one.everything_seen for one in judged)
    # The worst seed decides: an attacker may try again.
    worst = min(gains) if by_gain else min(kepts)
    broken = subject.result.status != "finished"
    did = dict(first.attacked.did)
    halves = [_steps_to_half(one.attacked.curve) for one in done]
    if any("kept" in point for point in first.attacked.curve):
        did |= _said_of_halves(halves, did.get("steps"))
    if plan.search:
        did |= {"strongest": {k: v for k, v in settings.items() if k not in plan.settings}} | summary(trials)
    losses = [one.loss for one in judged if one.loss is not None]
    stages = {stage: pooled([one.baseline[stage] for one in judged]) for stage in first.judged.baseline}
    before = stages.get("after", {})
    names = utility_names(subject.benchmark.headlines, metrics)
    return AttackResult(
        name=plan.name,
        settings={**plan.settings, **plan.said},
        seeds=list(plan.seeds),
        metrics=metrics,
        kept=sum(kepts) / len(kepts),
        kept_ci95=kept_interval(subject, judged),
        survived=worst >= plan.threshold and not reasons and not broken,
        threshold=plan.threshold,
        judged_on="R" if by_gain else "kept",
        collapsed=bool(reasons),
        reasons=reasons,
        did=did,
        per_seed=[_per_seed(one, half) for one, half in zip(done, halves, strict=True)],
        baseline=stages if first.judged.part else {},
        part="held-out rows" if first.judged.seen else "the same rows",
        curve=[dict(point) for point in first.attacked.curve],
        curves=[[dict(point) for point in one.attacked.curve] for one in done if one.attacked.curve],
        scores=scores_of(family_of(plan.name, dict(settings)), judged, broken=broken),
        utility={
            "before": {name: before[name] for name in names if name in before} or _known(subject, names),
            "after": {name: metrics[name] for name in names},
        },
        utility_loss=sum(losses) / len(losses) if losses else None,
        layers=[dict(row) for row in first.attacked.layers],
        ways=first.judged.ways,
        trials=trials,
        seconds=round(seconds, 3),
    )


def _known(subject: Subject, names: Sequence[str]) -> dict[str, Any]:
    return {name: subject.result.after[name] for name in names if name in subject.result.after}


def _per_seed(one: _Seed, half: float | None) -> dict[str, float]:
    row = {"seed": float(one.seed), "kept": one.judged.kept}
    if one.judged.gain is not None:
        row["R"] = one.judged.gain
    if one.judged.loss is not None:
        row["utility_loss"] = one.judged.loss
    if half is not None:
        row["steps_to_half"] = half
    return row | {name: metric.value for name, metric in one.judged.metrics.items()}


def _steps_to_half(curve: Sequence[Mapping[str, float]]) -> float | None:
    """The step at which half of the forgetting is gone, on a straight line between looks; None where it never is."""
    looks = [(point["step"], point["kept"]) for point in curve if "kept" in point]
    last: tuple[float, float] | None = None
    for step, kept in looks:
        if kept <= 0.5:
            if last is None or last[1] <= kept:
                return step
            return last[0] + (step - last[0]) * (last[1] - 0.5) / (last[1] - kept)
        last = (step, kept)
    return None


def _said_of_halves(halves: Sequence[float | None], steps: Any) -> dict[str, Any]:
    """The mean over seeds; where in some the attack ended first, those count as its last step, and the mean is a lower
    bound."""
    censored = sum(half is None for half in halves)
    last = float(steps or 0)
    mean = sum(last if half is None else half for half in halves) / len(halves)
    return {"steps_to_half": mean, "steps_to_half_censored": censored}
