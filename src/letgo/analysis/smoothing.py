"""A model under noise on its weights: which questions it then reveals, and bounds on its chances."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from letgo.analysis.bounds import certified_radius, clopper_pearson_lower
from letgo.analysis.records import Bound
from letgo.analysis.weights import Normals, Weights
from letgo.core.errors import NonFiniteLossError

Scale = Mapping[str, float]
"""A factor for each tensor."""


def noisy_outcome(
    weights: Weights, judge: Callable[[], list[bool]], sigma: float, seed: int, number: int, scale: Scale | None = None
) -> list[bool] | None:
    """What the judge says of the model under one draw of the noise; None where its scores were not finite.

    Args:
        weights: of the model that the judge looks at.
        judge: whether each question is revealed.
        sigma, seed, number, scale: of the noise, see `noisy`.
    """
    with weights.at(noisy(sigma, seed, number, scale)):
        try:
            return judge()
        except NonFiniteLossError:
            return None


def noisy(sigma: float, seed: int, number: int, scale: Scale | None = None) -> Any:
    """For `Weights.at`: θ + σ s ε of draw `number`, ε ~ N(0, I); s is 1 without a scale."""
    noise = Normals(seed, number)

    def value(name: str, original: Any) -> Any:
        return original + sigma * (scale[name] if scale else 1.0) * noise.like(original)

    return value


def bound(revealed: int, draws: int, sigma: float, alpha: float) -> Bound:
    p_lower = clopper_pearson_lower(draws - revealed, draws, alpha)
    return Bound(revealed=revealed, draws=draws, alpha=alpha, p_lower=p_lower, radius=certified_radius(sigma, p_lower))
