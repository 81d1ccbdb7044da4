"""Randomized smoothing of a model, by noise on its weights: what it then reveals, and bounds on yes-no events."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from scipy import special

from letgo.analysis.records import Bound
from letgo.analysis.weights import Normals, Weights
from letgo.core.errors import NonFiniteLossError, UserError

Scale = Mapping[str, float]
"""A factor for each tensor."""


def noisy_outcome(
    weights: Weights, judge: Callable[[], list[bool]], sigma: float, seed: int, number: int, scale: Scale | None = None
) -> list[bool] | None:
    """Whether each question is revealed, by the judge of a model with these weights, under one draw of the noise (see
    `noisy`); None where the model's scores are not finite."""
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


def clopper_pearson_lower(successes: int, draws: int, alpha: float) -> float:
    """The one-sided lower bound of Clopper and Pearson on a chance: p_lower ≤ p with confidence 1 − alpha, whatever p.

    The alpha quantile of Beta(k, n − k + 1); 0 for k = 0, alpha^(1/n) for k = n.
    """
    if not 0 <= successes <= draws or draws < 1:
        raise ValueError(f"{successes} successes of {draws} draws")
    if successes == 0:
        return 0.0
    if successes == draws:
        return alpha ** (1.0 / draws)
    return float(special.betaincinv(successes, draws - successes + 1, alpha))


def certified_radius(sigma: float, p_lower: float) -> float:
    """R = σ Φ⁻¹(p_lower); 0 where the bound is not above 1/2 (Cohen et al., arXiv 1902.02918, theorem 1).

    For an event of chance p > 1/2 under N(θ, σ²I), its chance under N(θ+δ, σ²I) is above 1/2 for all ‖δ‖ < σ Φ⁻¹(p).
    """
    return sigma * float(special.ndtri(p_lower)) if p_lower > 0.5 else 0.0


def reveals_at_most(displacement: float, sigma: float, p_lower: float) -> float:
    """The highest chance to reveal after a change of the weights of size r: Φ(r/σ − Φ⁻¹(p_lower)), by Neyman and
    Pearson's lemma; 1/2 at r = R."""
    if p_lower <= 0.0:
        return 1.0
    return float(special.ndtr(displacement / sigma - special.ndtri(p_lower)))


def draws_needed(alpha: float) -> int:
    """The smallest n with alpha^(1/n) > 1/2: with fewer draws nothing can be certified, even if none reveals."""
    needed = math.floor(math.log(1.0 / alpha) / math.log(2.0)) + 1
    # The logarithms may be off by an ulp where alpha is a power of 1/2.
    while needed > 1 and alpha ** (1.0 / (needed - 1)) > 0.5:
        needed -= 1
    while alpha ** (1.0 / needed) <= 0.5:
        needed += 1
    return needed


def check_smoothing(sigma: float, alpha: float) -> None:
    if not (math.isfinite(sigma) and sigma > 0):
        raise UserError(f"sigma must be above 0, not {sigma}: without noise nothing is smoothed, nor certified")
    if not 0.0 < alpha < 0.5:
        raise UserError(f"alpha must be above 0 and below 0.5, not {alpha}; 0.01 is a confidence of 99 %")
