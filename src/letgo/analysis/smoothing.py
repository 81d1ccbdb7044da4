"""A model under noise on its weights: what is found of it draw by draw, and bounds on its chances."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from letgo.analysis.bounds import certified_radius, clopper_pearson_lower
from letgo.analysis.ledger import Ledger
from letgo.analysis.records import Bound
from letgo.analysis.weights import Normals, Weights
from letgo.core.errors import NonFiniteLossError
from letgo.core.progress import Task

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
    ledger: Ledger | None = None,
    task: Task | None = None,
) -> list[list[bool] | None]:
    """What the judge says of the model under each of N draws of the noise; None where its scores were not finite.

    Args:
        weights: of the model that the judge looks at.
        judge: whether each question is revealed.
        sigma: of the noise.
        scale: a factor for each tensor, or 1.
        ledger: remembers draws already made, by their number.
    """
    found: list[list[bool] | None] = []
    for number in range(draws):
        known = ledger.get([number]) if ledger is not None else None
        if known is None:
            with weights.at(noisy(sigma, seed, number, scale)):
                try:
                    outcome: list[bool] | None = judge()
                except NonFiniteLossError:
                    outcome = None
            known = {"revealed": None if outcome is None else [int(yes) for yes in outcome]}
            if ledger is not None:
                ledger.put([number], known)
        revealed = known["revealed"]
        found.append(None if revealed is None else [bool(yes) for yes in revealed])
        if task is not None:
            task.advance()
    return found


def noisy(sigma: float, seed: int, number: int, scale: Mapping[str, float] | None = None) -> Any:
    """For `Weights.at`: θ + σ s ε of draw `number`, ε ~ N(0, I)."""
    noise = Normals(seed, number)

    def value(name: str, own: Any) -> Any:
        return own + sigma * (scale[name] if scale else 1.0) * noise.like(own)

    return value


def bound(revealed: int, draws: int, sigma: float, alpha: float) -> Bound:
    p_lower = clopper_pearson_lower(draws - revealed, draws, alpha)
    return Bound(revealed=revealed, draws=draws, alpha=alpha, p_lower=p_lower, radius=certified_radius(sigma, p_lower))
