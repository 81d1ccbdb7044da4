"""Records whose outcome is known, because it was put there."""

from __future__ import annotations

from typing import Any

from research.d2u.experiments import read_testbed
from research.d2u.records import AttackScore, Record, SeedRun, Setting, Trial, Tuning

HALF, ALL = read_testbed("biographies").half, read_testbed("biographies").everything
BEFORE = {"forget_accuracy": 1.0, "retain_accuracy": 1.0, "retain_probability": 0.99, "general_perplexity": 2.0}
AFTER = {"forget_accuracy": 0.4, "forget_probability": 0.08, "retain_accuracy": 0.9, "general_perplexity": 2.1}
HELD_BACK = "quantize:bits=3,granularity=channel,symmetric=False"
SEEDS = (0, 1, 2)
SEED_EFFECT = {0: 0.0, 1: 0.05, 2: -0.04}
"""How much the seeds differ, the same for all settings: so paired differences have less spread than the values."""


def run(seed: int, *, harmonic: float = 0.5, r: float = 0.5, q: float = 0.95, **changes: Any) -> SeedRun:
    shift = SEED_EFFECT.get(seed, 0.0)
    q += shift / 10
    values: dict[str, Any] = {
        "seed": seed,
        "status": "finished",
        "run_id": f"run-{seed}",
        "git": "0123456",
        "after": AFTER | {"retain_probability": 0.5 + shift},
        "unlearn_seconds": 7.0,
        "attacks": {
            "quantize:bits=4": AttackScore(kept=q),
            "quantize:bits=3": AttackScore(kept=q),
            "quantize:bits=2": AttackScore(kept=0.99, collapsed=True),
            HALF: AttackScore(kept=r + shift, R=r + shift),
            ALL: AttackScore(kept=0.0, R=r + shift),
            HELD_BACK: AttackScore(kept=q),
        },
        "robustness": {"R": r + shift, "Q": q, "harmonic_mean": harmonic + shift},
    }
    return SeedRun(**(values | changes))


def setting(name: str, *, runs: list[SeedRun] | None = None, **more: Any) -> Setting:
    how = {key: more.pop(key) for key in ("harmonic", "r", "q", "after") if key in more}
    values: dict[str, Any] = {
        "name": name,
        "optimizer": name.lower(),
        "learning_rate": 3e-4,
        "steps": 48,
        "passes": {"forward": 48.0, "backward": 48.0},
        "runs": [run(seed, **how) for seed in SEEDS] if runs is None else runs,
    }
    return Setting(**(values | more))


def noisy(name: str, by_seed: dict[int, float]) -> Setting:
    """A setting whose harmonic mean differs from seed to seed as given."""
    runs = [run(seed, harmonic=value - SEED_EFFECT.get(seed, 0.0)) for seed, value in by_seed.items()]
    return setting(name, runs=runs)


def record(*settings: Setting, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "testbed": "biographies",
        "objective": "npo",
        "before": BEFORE,
        "held_back": [HELD_BACK],
        "settings": list(settings),
    }
    return Record(**(values | changes))


def tuning(name: str, **verdicts: str) -> Tuning:
    """A setting that was tuned: the verdict of each rate, given as `rate_3e4="reached"`."""
    trials = []
    for index, verdict in enumerate(verdicts.values()):
        status = "collapsed" if verdict == "collapsed" else "finished"
        after = AFTER if verdict == "reached" else BEFORE
        seed_run = run(100, status=status, after=after, attacks={}, robustness={})
        about = {"learning_rate": 1e-4 * (index + 1), "verdict": verdict, "chosen": verdict == "reached"}
        trials.append(Trial(**seed_run.model_dump(), **about))
    goals = {"target": "forget_probability <= 0.1", "bound": "retain_accuracy >= 0.85*before"}
    return Tuning(name=name, optimizer=name.lower(), steps=48, trials=trials, **goals)
