"""R, Q and their harmonic mean: one figure for how a run stands up to relearning and to quantization."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from letgo.attacks import ATTACKS
from letgo.attacks.engine.judge import Judged
from letgo.runs.results import AttackResult


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
    alike; else `kept` stands in for it, and "R_by_kept" says so.
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
    """R and Q of the strongest attacks of each kind, and their harmonic mean where there are both.

    An attack that broke a sound model proves neither and is left out.
    """
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
