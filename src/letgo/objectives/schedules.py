"""How the retain term's weight goes over a run: a pure function of progress, from 0 at the start to 1 at the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from letgo.core.catalog import check_settings, did_you_mean, parse_spec
from letgo.core.errors import UserError
from letgo.core.values import Weight

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


SCHEDULES: dict[str, Callable[..., float]] = {"constant": constant, "linear": linear, "cosine": cosine, "step": step}


def parse_schedule(spec: str) -> Schedule:
    """A schedule from "linear:start=0,end=1": what the weight is multiplied by, of progress in [0, 1].

    Raises:
        UserError: an unknown name, an unknown setting, or a value that is no finite number of at least 0.
    """
    name, settings = parse_spec(spec)
    if name not in SCHEDULES:
        raise UserError(
            f"unknown retain weight schedule {name!r}{did_you_mean(name, SCHEDULES)}\n  known: {', '.join(SCHEDULES)}"
        )
    check_settings(f"retain weight schedule {name!r}", [SCHEDULES[name]], settings, skip=("progress",))
    return partial(SCHEDULES[name], **settings)
