"""From judged seeds to the record of an attack, and to R and Q: how a run stands up to relearning and quantization."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from letgo.attacks import ATTACKS
from letgo.attacks.engine.base import Attacked, Judged
from letgo.attacks.engine.judge import Recorded, interval_of
from letgo.attacks.engine.search import summary
from letgo.attacks.engine.spec import AttackSpec
from letgo.metrics.robustness import utility_names
from letgo.runs.results import AttackResult, Metrics


@dataclass(frozen=True)
class Seed:
    """One seed's attack and its judgement."""

    seed: int
    attacked: Attacked
    judged: Judged


def result_of(
    recorded: Recorded,
    plan: AttackSpec,
    settings: Mapping[str, Any],
    seeds: Sequence[Seed],
    trials: list[dict[str, Any]],
    seconds: float,
) -> AttackResult:
    """An attack's result, of all its seeds, at least one. `settings` are those that it was run with; after a search,
    which has `trials`, its strongest."""
    judged, first = [seed.judged for seed in seeds], seeds[0]
    metrics = pooled([seed.metrics for seed in judged])
    kepts = [seed.kept for seed in judged]
    reasons = list(dict.fromkeys(reason for seed in judged for reason in seed.reasons))
    if plan.search and not any(trial["within_bound"] for trial in trials):
        reasons.append(f"no trial stayed within a utility loss of {plan.bound:g}: nothing is proven")
    gains = [seed.gain for seed in judged if seed.gain is not None]
    by_gain = len(gains) == len(judged) and all(seed.everything_seen for seed in judged)
    # The worst seed decides: an attacker may try again.
    worst = min(gains) if by_gain else min(kepts)
    halves = [_steps_to_half(seed.attacked.curve) for seed in seeds]
    losses = [seed.loss for seed in judged if seed.loss is not None]
    stages = {stage: pooled([seed.baseline[stage] for seed in judged]) for stage in first.judged.baseline}
    did = dict(first.attacked.did)
    if any("kept" in point for point in first.attacked.curve):
        did |= _mean_of_halves(halves, did.get("steps"))
    if plan.search:
        did |= {"strongest": {k: v for k, v in settings.items() if k not in plan.settings}} | summary(trials)
    return AttackResult(
        name=plan.name,
        settings={**plan.settings, **plan.given},
        seeds=list(plan.seeds),
        metrics=metrics,
        kept=sum(kepts) / len(kepts),
        kept_ci95=interval_of(recorded, judged),
        survived=worst >= plan.threshold and not reasons and not recorded.broken,
        threshold=plan.threshold,
        judged_on="R" if by_gain else "kept",
        collapsed=bool(reasons),
        reasons=reasons,
        did=did,
        per_seed=[_per_seed(seed, half) for seed, half in zip(seeds, halves, strict=True)],
        baseline=stages if first.judged.part else {},
        part="held-out rows" if first.judged.seen else "the same rows",
        curve=[dict(point) for point in first.attacked.curve],
        curves=[[dict(point) for point in seed.attacked.curve] for seed in seeds if seed.attacked.curve],
        scores=scores_of(family_of(plan.name, dict(settings)), judged, broken=recorded.broken),
        utility=_utility(recorded, stages.get("after", {}), metrics),
        utility_loss=sum(losses) / len(losses) if losses else None,
        layers=[dict(row) for row in first.attacked.layers],
        ways=list(first.judged.ways),
        trials=trials,
        seconds=round(seconds, 3),
    )


def pooled(measured: Sequence[Metrics]) -> Metrics:
    """The metrics over all seeds: the mean, n of all, the interval from the lowest to the highest end."""
    if len(measured) == 1:
        return measured[0]
    metrics: Metrics = {}
    for name in measured[0]:
        seeds = [seed[name] for seed in measured if name in seed]
        low, high = min(seed.ci95[0] for seed in seeds), max(seed.ci95[1] for seed in seeds)
        value = sum(seed.value for seed in seeds) / len(seeds)
        metrics[name] = seeds[0].model_copy(update={"value": value, "n": sum(s.n for s in seeds), "ci95": (low, high)})
    return metrics


def _utility(recorded: Recorded, before: Metrics, metrics: Metrics) -> dict[str, Metrics]:
    """What the model is good for, before the attack (over the same rows, else as recorded) and after it."""
    names = utility_names(recorded.headlines, metrics)
    return {
        "before": {name: before[name] for name in names if name in before}
        or {name: recorded.after[name] for name in names if name in recorded.after},
        "after": {name: metrics[name] for name in names},
    }


def _per_seed(seed: Seed, half: float | None) -> dict[str, float]:
    judged = seed.judged
    optional = {"R": judged.gain, "utility_loss": judged.loss, "steps_to_half": half}
    return (
        {"seed": float(seed.seed), "kept": judged.kept}
        | {name: value for name, value in optional.items() if value is not None}
        | {name: metric.value for name, metric in judged.metrics.items()}
    )


def _steps_to_half(curve: Sequence[Mapping[str, float]]) -> float | None:
    """The step at which half of the forgetting is gone, on a straight line between looks; None where it never is."""
    last: tuple[float, float] | None = None
    for step, kept in ((point["step"], point["kept"]) for point in curve if "kept" in point):
        if kept <= 0.5:
            if last is None or last[1] <= kept:
                return step
            return last[0] + (step - last[0]) * (last[1] - 0.5) / (last[1] - kept)
        last = (step, kept)
    return None


def _mean_of_halves(halves: Sequence[float | None], steps: Any) -> dict[str, Any]:
    """The mean over seeds. A seed that ended first counts as its last step, and the mean is then a lower bound."""
    last = float(steps or 0)
    mean = sum(last if half is None else half for half in halves) / len(halves)
    return {"steps_to_half": mean, "steps_to_half_censored": halves.count(None)}


def family_of(name: str, settings: dict[str, object] | None = None) -> str:
    """Under which score an attack counts; an attack unknown to this letgo under none."""
    if name not in ATTACKS:
        return "other"
    if name == "external":
        return str((settings or {}).get("family", "quantization"))
    return ATTACKS.record(name).family


def scores_of(family: str, seeds: Sequence[Judged], *, broken: bool) -> dict[str, float]:
    """R or Q of one attack, the mean over seeds; 0 where the run itself is broken.

    Q is the share of the forgetting that is left after quantization, min(after/before, 1), which is `kept`. R is
    min(Δ_retrained/Δ_unlearned, 1) on the rows that the attacker trained on, where the retrained model was attacked
    too; else `kept` stands in for it, and "R_by_kept" says so.
    """
    if family not in ("relearning", "quantization"):
        return {}
    if broken:
        return {"R" if family == "relearning" else "Q": 0.0}
    kept = sum(seed.kept for seed in seeds) / len(seeds)
    if family == "quantization":
        return {"Q": kept}
    gains = [seed.gain for seed in seeds if seed.gain is not None]
    if len(gains) == len(seeds):
        return {"R": sum(gains) / len(gains), "R_worst": min(gains)}
    return {"R": kept, "R_worst": min(seed.kept for seed in seeds), "R_by_kept": 1.0}


def robustness(attacks: Iterable[AttackResult]) -> dict[str, float]:
    """R and Q of the strongest attacks of each kind, and their harmonic mean where there are both; without attacks that
    broke a sound model, which prove neither."""
    proving = [a for a in attacks if a.scores and not (a.collapsed and any(v > 0 for v in a.scores.values()))]
    scores: dict[str, float] = {}
    for key in ("R", "Q"):
        values = [attack.scores[key] for attack in proving if key in attack.scores]
        if values:
            scores[key] = min(values)
    if len(scores) == 2:
        both = scores["R"] * scores["Q"]
        scores["harmonic_mean"] = 2 * both / (scores["R"] + scores["Q"]) if both else 0.0
    return scores
