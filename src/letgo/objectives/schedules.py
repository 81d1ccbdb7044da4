"""How the retain term's weight goes over a run: a pure function of progress, from 0 at the start to 1 at the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from letgo.core.catalog import did_you_mean, parse_spec, settings_of
from letgo.core.errors import UserError

Schedule = Callable[[float], float]


def constant(progress: float) -> float:
    """s(p) = 1."""
    return 1.0


def linear(progress: float, *, start: float = 0.0, end: float = 1.0) -> float:
    """s(p) = start + (end − start) p."""
    return start + (end - start) * progress


def cosine(progress: float, *, start: float = 0.0, end: float = 1.0) -> float:
    """s(p) = end + (start − end) (1 + cos πp) / 2: flat at both ends."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def step(progress: float, *, at: float = 0.5, start: float = 0.0, end: float = 1.0) -> float:
    """s(p) = start before `at`, end from there on."""
    return start if progress < at else end


SCHEDULES: dict[str, Callable[..., float]] = {"constant": constant, "linear": linear, "cosine": cosine, "step": step}


def parse_schedule(spec: str) -> Schedule:
    """A schedule from "linear:start=0,end=1": what the weight is multiplied by, of progress in [0, 1].

    Raises:
        UserError: an unknown name, an unknown setting, or a value that is no number of at least 0.
    """
    name, settings = parse_spec(spec)
    if name not in SCHEDULES:
        raise UserError(
            f"unknown retain weight schedule {name!r}{did_you_mean(name, SCHEDULES)}\n  known: {', '.join(SCHEDULES)}"
        )
    function = SCHEDULES[name]
    known = settings_of(function, skip=("progress",))
    for key, value in settings.items():
        if key not in known:
            raise UserError(
                f"retain weight schedule {name!r} has no setting {key!r}{did_you_mean(key, known)}\n"
                f"  its settings: {', '.join(known) or 'none'}"
            )
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < math.inf:
            raise UserError(f"retain weight schedule {spec!r}: {key} must be a number of at least 0, not {value!r}")
    return partial(function, **settings)
