"""Ladders whose outcome is known, because it was put there."""

from __future__ import annotations

from typing import Any

from letgo.evidence.records import Attacked, Cell, Group, Record, value
from letgo.evidence.subjects import SUBJECTS

HALF, ALL = SUBJECTS["biographies"].half, SUBJECTS["biographies"].everything
BEFORE = {"forget_accuracy": 1.0, "retain_accuracy": 1.0, "retain_probability": 0.99, "general_perplexity": 2.0}
HELD_BACK = "quantize:bits=3,granularity=channel,symmetric=False"
SEEDS = (0, 1, 2)
# So much do the seeds differ, the same for all grades: paired differences have less spread than the values.
SEED_EFFECT = {0: 0.0, 1: 0.05, 2: -0.04}


def cell(seed: int, *, harmonic: float = 0.5, r: float = 0.5, q: float = 0.95, **changes: Any) -> Cell:
    shift = SEED_EFFECT.get(seed, 0.0)
    values: dict[str, Any] = {
        "seed": seed,
        "status": "finished",
        "run_id": f"run-{seed}",
        "learning_rate": 3e-4,
        "after": {
            "forget_accuracy": 0.4,
            "forget_probability": 0.08,
            "retain_accuracy": 0.9,
            "retain_probability": 0.5 + shift,
            "general_perplexity": 2.1,
        },
        "unlearn_seconds": 7.0,
        "attacks": {
            "quantize:bits=4": Attacked(kept=q + shift / 10),
            "quantize:bits=3": Attacked(kept=q + shift / 10),
            "quantize:bits=2": Attacked(kept=0.99, collapsed=True),
            HALF: Attacked(kept=r + shift, R=r + shift),
            ALL: Attacked(kept=0.0, R=r + shift),
            HELD_BACK: Attacked(kept=q + shift / 10),
        },
        "robustness": {"R": r + shift, "Q": q + shift / 10, "harmonic_mean": harmonic + shift},
    }
    return Cell(**(values | changes))


def group(
    optimizer: str, *, settings: dict[str, Any] | None = None, cells: list[Cell] | None = None, **more: Any
) -> Group:
    known = {"harmonic", "r", "q"}
    how = {key: more.pop(key) for key in list(more) if key in known}
    values: dict[str, Any] = {
        "objective": "npo_gdr",
        "optimizer": optimizer,
        "settings": settings or {},
        "grade": "first",
        "learning_rate": 3e-4,
        "steps": 48,
        "passes": {"forward": 48.0, "backward": 48.0},
        "cells": [cell(seed, **how) for seed in SEEDS] if cells is None else cells,
    }
    return Group(**(values | more))


def record(*groups: Group, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "kind": "ladder",
        "source": "recipes/evidence/npo.yaml",
        "git": "0123456",
        "objective": "npo_gdr",
        "before": BEFORE,
        "held_back": [HELD_BACK],
        "groups": list(groups),
    }
    return Record(**(values | changes))


def noisy(optimizer: str, by_seed: dict[int, float], **more: Any) -> Group:
    """A grade whose harmonic mean differs from seed to seed as told."""
    return group(
        optimizer,
        cells=[cell(seed, harmonic=one - SEED_EFFECT.get(seed, 0.0)) for seed, one in by_seed.items()],
        **more,
    )


def tuning() -> Record:
    reached, missed = cell(100), cell(100, after=BEFORE, attacks={}, robustness={})
    collapsed = cell(100, status="collapsed", reason="perplexity rose tenfold", attacks={}, robustness={})
    return record(
        group("adamw", cells=[], trials=[missed, reached], verdicts=["missed", "reached"], reached=True),
        group("ada_zo", cells=[], trials=[missed, collapsed], verdicts=["missed", "collapsed"], reached=False),
        kind="tuning",
        source="recipes/evidence/tune-npo.yaml",
        target="forget_probability <= 0.1",
        bound="retain_accuracy >= 0.85*before",
        held_back=[],
    )


__all__ = ["ALL", "BEFORE", "HALF", "HELD_BACK", "SEEDS", "cell", "group", "noisy", "record", "tuning", "value"]
