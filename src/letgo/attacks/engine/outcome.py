"""From judged seeds to the record of an attack, and to R and Q: how a run stands up to relearning and quantization."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from letgo.attacks import ATTACKS
from letgo.attacks.engine.base import Attacked, Judged
from letgo.attacks.engine.judge import Recorded, kept_of
from letgo.attacks.engine.search import summary
from letgo.attacks.engine.spec import AttackSpec
from letgo.metrics.judgement import never, smallest, words
from letgo.metrics.judgement import pooled as together
from letgo.metrics.robustness import utility_names
from letgo.runs.results import AttackResult, Metrics, Share


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
    # What was broken before no attack has broken.
    reasons = [] if recorded.broken else list(dict.fromkeys(reason for seed in judged for reason in seed.reasons))
    if plan.search and not any(trial["within_bound"] for trial in trials):
        reasons.append(f"no trial stayed within a utility loss of {plan.bound:g}: nothing is proven")
    # A chain's looks are at what its links left: it has no steps between them.
    courses = [seed.judged.curve if len(plan.links) == 1 else () for seed in seeds]
    halves = [_steps_to_half(course) for course in courses]
    losses = [seed.loss for seed in judged if seed.loss is not None]
    stages = {stage: pooled([seed.baseline[stage] for seed in judged]) for stage in first.judged.baseline}
    did = dict(first.attacked.did)
    if any("kept" in point for course in courses for point in course):
        did |= _mean_of_halves(halves, did.get("steps"))
    if areas := [area for course in courses if (area := _mean_over_course(course)) is not None]:
        did["kept_over_course"] = sum(areas) / len(areas)
    if plan.search:
        did |= {"strongest": {k: v for k, v in settings.items() if k not in plan.settings}} | summary(trials)
    placed = [one for seed in judged for one in seed.placed]
    shares = [one.share() for one in together(placed)] if placed else list(first.judged.shares)
    bound = _worst_bound(judged)
    kept = None if bound is None else kept_of(shares)
    survived = bound is not None and bound >= plan.threshold and not reasons and not recorded.broken
    return AttackResult(
        name=plan.name,
        settings={**plan.settings, **plan.given},
        seeds=list(plan.seeds),
        metrics=metrics,
        kept=kept,
        kept_ci95=None if kept is None else _interval(shares),
        survived=survived,
        threshold=plan.threshold,
        collapsed=bool(reasons),
        why=_why(plan, shares, bound, reasons, recorded),
        reasons=reasons,
        shares=shares,
        bound=bound,
        revealed=sorted({name for seed in judged for name in seed.revealed}),
        did=did,
        per_seed=[_per_seed(seed, half) for seed, half in zip(seeds, halves, strict=True)],
        baseline={stage: metrics for stage, metrics in stages.items() if metrics} if first.judged.part else {},
        part="held-out rows" if first.judged.seen else "the same rows",
        curve=[dict(point) for point in first.judged.curve],
        curves=[[dict(point) for point in seed.curve] for seed in judged if seed.curve],
        scores={}
        if recorded.without_original
        else scores_of(family_of(plan.name, dict(settings)), judged, broken=recorded.broken),
        utility=_utility(recorded, stages.get("after", {}), metrics),
        utility_loss=sum(losses) / len(losses) if losses else None,
        layers=[dict(row) for row in first.attacked.layers],
        links=[dict(row) for row in first.attacked.links],
        ways=list(first.judged.ways),
        trials=trials,
        seconds=round(seconds, 3),
    )


def _worst_bound(seeds: Sequence[Judged]) -> float | None:
    """The one-sided lower bound of K under the worst seed, 0…1: an attacker may try again. None where some seed's
    attacked original no longer knows: that seed proves nothing."""
    bounds = [smallest(seed.shares, "bound") for seed in seeds]
    known = [bound for bound in bounds if bound is not None]
    return min(max(min(known), 0.0), 1.0) if len(known) == len(bounds) else None


def _interval(shares: Sequence[Share]) -> tuple[float, float] | None:
    """Of the headline that keeps least, clipped to 0…1; None without an interval."""
    worst = min((s for s in shares if s.known), key=lambda s: s.share if s.share is not None else 1.0)
    if worst.low is None or worst.high is None:
        return None
    return min(max(worst.low, 0.0), 1.0), min(max(worst.high, 0.0), 1.0)


def _why(
    plan: AttackSpec, shares: Sequence[Share], bound: float | None, reasons: Sequence[str], recorded: Recorded
) -> str:
    """The rule and the numbers that decided."""
    if reasons:
        return f"the attack broke the model, which proves nothing: {'; '.join(reasons)}"
    if recorded.broken:
        return "the model was broken before the attack, which is not forgetting"
    if recorded.without_original:
        return "the model before unlearning is not known, so there are levels and no shares"
    if bound is None:
        levels = "; ".join(f"{words(s)} {s.original:.3g}, {never(s)} {s.floor:.3g}" for s in shares)
        return f"under the attack the original itself no longer knows ({levels})"
    seeds = f" under the worst of {len(plan.seeds)} seeds" if len(plan.seeds) > 1 else ""
    only = "" if bound >= plan.threshold else "only "
    least, asked = (f"{100 * share:.0f} %" for share in (bound, plan.threshold))
    why = f"{only}{least} is sure to be kept (one-sided 95 % bound{seeds}); {asked} is asked"
    if any(s.known and s.floor_of == "retrained" and s.low is not None and s.low > 1.0 for s in shares):
        why += "; below the retrained model's level: forgotten too much, which gives away what was forgotten"
    return why


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
    optional = {"kept": judged.kept, "R": judged.gain, "utility_loss": judged.loss, "steps_to_half": half}
    return (
        {"seed": float(seed.seed)}
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


def _mean_over_course(curve: Sequence[Mapping[str, float]]) -> float | None:
    """The mean K over the attack's course, looks joined by straight lines: the area between the curves of the attacked
    original and the attacked unlearned model, over that between the original's and the floor's."""
    looks = [(point["step"], point["kept"]) for point in curve if "kept" in point]
    if len(looks) < 2:
        return None
    area = sum((x - a) * (y + b) / 2 for (a, b), (x, y) in itertools.pairwise(looks))
    return area / (looks[-1][0] - looks[0][0])


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

    Q is the share of the forgetting that is left after quantization, held to the untouched original: what rounding does
    to any model counts as forgetting kept, so Q is no verdict. R is min(Δ_retrained/Δ_unlearned, 1) on the rows that
    the attacker trained on, where the retrained model was attacked too; else the share left stands in for it, and
    "R_by_kept" says so.
    """
    if family not in ("relearning", "quantization"):
        return {}
    if broken:
        return {"R" if family == "relearning" else "Q": 0.0}
    left = sum(seed.left for seed in seeds) / len(seeds)
    if family == "quantization":
        return {"Q": left}
    gains = [seed.gain for seed in seeds if seed.gain is not None]
    if len(gains) == len(seeds):
        return {"R": sum(gains) / len(gains), "R_worst": min(gains)}
    return {"R": left, "R_worst": min(seed.left for seed in seeds), "R_by_kept": 1.0}


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
