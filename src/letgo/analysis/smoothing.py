"""A model under noise on its weights: what is found of it draw by draw, and bounds on its chances."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from letgo.analysis.bounds import certified_radius, clopper_pearson_lower
from letgo.analysis.records import Bound
from letgo.analysis.weights import Normals, Weights
from letgo.core.errors import NonFiniteLossError
from letgo.core.progress import Task
from letgo.scoring.resume_log import ResumeLog

Judge = Callable[[], list[bool]]
Scale = Mapping[str, float]


def noisy_outcomes(
    weights: Weights,
    judge: Judge,
    *,
    sigma: float,
    draws: int,
    seed: int,
    scale: Mapping[str, float] | None = None,
    log: ResumeLog | None = None,
    task: Task | None = None,
) -> list[list[bool] | None]:
    """What the judge says of the model under each of N draws of the noise; None where its scores were not finite.

    Args:
        weights: of the model that the judge looks at.
        judge: whether each question is revealed.
        sigma: of the noise.
        scale: a factor for each tensor, or 1.
        log: remembers draws already made, by their number.
    """
    log = ResumeLog(None, {}) if log is None else log

    def outcome(number: int) -> list[int] | None:
        with weights.at(noisy(sigma, seed, number, scale)):
            try:
                return [int(yes) for yes in judge()]
            except NonFiniteLossError:
                return None

    outcomes: list[list[bool] | None] = []
    for number in range(draws):
        revealed = log.value(str(number), partial(outcome, number))
        outcomes.append(None if revealed is None else [bool(yes) for yes in revealed])
        if task is not None:
            task.advance()
    return outcomes


def noisy(sigma: float, seed: int, number: int, scale: Mapping[str, float] | None = None) -> Any:
    """For `Weights.at`: θ + σ s ε of draw `number`, ε ~ N(0, I)."""
    noise = Normals(seed, number)

    def value(name: str, own: Any) -> Any:
        return own + sigma * (scale[name] if scale else 1.0) * noise.like(own)

    return value


def bound(revealed: int, draws: int, sigma: float, alpha: float) -> Bound:
    p_lower = clopper_pearson_lower(draws - revealed, draws, alpha)
    return Bound(revealed=revealed, draws=draws, alpha=alpha, p_lower=p_lower, radius=certified_radius(sigma, p_lower))
