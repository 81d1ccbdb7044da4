"""How the retain term's weight goes over a run: by a pure function of progress, from 0 at the start to 1 at the end;
or, as a dual variable, by the retain loss itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from letgo.core.catalog import check_settings, did_you_mean, parse_spec
from letgo.core.errors import UserError
from letgo.core.values import BelowOne, Positive, Weight

Schedule = Callable[[float], float]


def constant(progress: float) -> float:
    """s(p) = 1."""
    return 1.0


def linear(progress: float, *, start: Weight = 0.0, end: Weight = 1.0) -> float:
    """s(p) = start + (end − start) p."""
    return start + (end - start) * progress


def cosine(progress: float, *, start: Weight = 0.0, end: Weight = 1.0) -> float:
    """s(p) = end + (start − end) (1 + cos πp) / 2: flat at both ends."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def step(progress: float, *, at: Weight = 0.5, start: Weight = 0.0, end: Weight = 1.0) -> float:
    """s(p) = start before `at`, end from there on."""
    return start if progress < at else end


@dataclass(frozen=True)
class Dual:
    """λ ← max(0, λ + ρ (ℓ_r − ε)) after every step of the optimizer once the warm-up is over: dual ascent on the bound
    ℓ_r ≤ ε (PDU, arXiv 2506.05314).

    Args:
        bound: ε, a little above the retain loss at the start.
        rate: ρ.
        warmup: the share of the run in which λ stays as it was given.
    """

    bound: Weight = 0.3
    rate: Positive = 5.0
    warmup: BelowOne = 0.5

    def moved(self, weight: float, retain_loss: float, progress: float) -> float:
        """λ after a step that was taken with λ = `weight`, at `retain_loss`, after this share of the run."""
        return weight if progress < self.warmup else max(0.0, weight + self.rate * (retain_loss - self.bound))


SCHEDULES: dict[str, Callable[..., float] | type[Dual]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "step": step,
    "dual": Dual,
}


def parse_schedule(spec: str) -> Schedule | Dual:
    """A schedule from "linear:start=0,end=1": what the weight is multiplied by, of progress in [0, 1]; of "dual:…" the
    rule by which the weight moves.

    Raises:
        UserError: an unknown name, an unknown setting, or a value that is no finite number of at least 0.
    """
    name, settings = parse_spec(spec)
    if name not in SCHEDULES:
        raise UserError(
            f"unknown retain weight schedule {name!r}{did_you_mean(name, SCHEDULES)}\n  known: {', '.join(SCHEDULES)}"
        )
    check_settings(f"retain weight schedule {name!r}", [SCHEDULES[name]], settings, skip=("progress",))
    schedule = SCHEDULES[name]
    return schedule(**settings) if isinstance(schedule, type) else partial(schedule, **settings)
